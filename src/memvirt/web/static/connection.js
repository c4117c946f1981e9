// SPDX-License-Identifier: Apache-2.0
// The wire: the WebSocket's messages (wire.py says how they are made) and JSON questions.

const VERSION = 1;
const token = new URLSearchParams(location.search).get('token') ?? '';

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Header and arrays of a message, on top of the arrays the receiver has (which are changed). */
export async function decode(buffer, parts) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  if (header.version !== VERSION) throw new Error(`format ${header.version}, and this page knows ${VERSION}: reload it`);
  const stream = await inflate(new Uint8Array(buffer, 4 + length));
  const view = new DataView(stream.buffer, stream.byteOffset, stream.byteLength);
  let at = 0;
  for (const part of header.parts) {
    if (!part.size) { parts.delete(part.name); continue; } // there is no such part any more
    if (part.kind === 'whole') {
      parts.set(part.name, stream.slice(at, at + part.count));
      at += part.count;
      continue;
    }
    const array = parts.get(part.name), { count, width } = part, values = at + width * count;
    let index = 0;
    for (let i = 0; i < count; i++) {
      index += width === 2 ? view.getUint16(at + 2 * i, true) : view.getUint32(at + 4 * i, true);
      array[index] = stream[values + i];
    }
    at = values + count;
  }
  return { header, changed: header.parts.map(part => part.name) };
}

async function answer(response) {
  if (response.ok) return response;
  const body = await response.json().catch(() => ({ error: `the server answers ${response.status}` }));
  throw new Error(body.error);
}

function authorized(extra = {}) { return { headers: { authorization: `Bearer ${token}` }, cache: 'no-store', ...extra }; }

/** What an answer says; it may be why there is none, which is no fault. */
async function said(response) {
  const body = await (await answer(response)).json();
  if (body?.nothing !== undefined) throw new Error(body.nothing);
  return body;
}

/** The answer to a question, as JSON. Throws an Error whose message is for the user. */
export async function ask(name, values = {}) {
  const query = new URLSearchParams(values);
  return said(await fetch(`api/${name}?${query}`, authorized()));
}

/** The frame of a moment that is over: a header, and its arrays whole. */
export async function frameAt(number) {
  const response = await answer(await fetch(`api/at?number=${number}`, authorized()));
  if (response.headers.get('content-type')?.startsWith('application/json')) throw new Error((await response.json()).nothing);
  const parts = new Map();
  const { header } = await decode(await response.arrayBuffer(), parts);
  return { header, parts };
}

export async function command(name, values) {
  const body = JSON.stringify(values);
  return said(await fetch(`api/${name}`, authorized({ method: 'POST', body })));
}

let socket = null;
const wishes = {};

/** Tell the server what this page wishes to see, now and when the socket opens again. */
export function wish(name, value) {
  if (wishes[name] === value) return;
  wishes[name] = value;
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(wishes));
}

/** Open the socket; it opens again by itself. Frames are decoded in order, one at a time. */
export function connect({ onHello, onFrame, onState }) {
  const parts = new Map();
  let wait = 500;
  const open = () => {
    const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
    const mine = socket = new WebSocket(`${scheme}://${location.host}/live?token=${encodeURIComponent(token)}`);
    mine.binaryType = 'arraybuffer';
    let turn = Promise.resolve();
    mine.onmessage = event => {
      if (typeof event.data === 'string') { parts.clear(); wait = 500; onHello(JSON.parse(event.data)); return; }
      turn = turn.then(async () => {
        const { header, changed } = await decode(event.data, parts);
        onFrame(header, parts, changed, event.data.byteLength);
      }).catch(error => onState(error.message));
    };
    mine.onopen = () => { onState(''); if (Object.keys(wishes).length) mine.send(JSON.stringify(wishes)); };
    mine.onclose = event => {
      if (event.code === 4403) { onState('refused: use the address that memvirt printed'); return; }
      onState('memvirt is gone, or out of reach; trying again');
      setTimeout(open, wait);
      wait = Math.min(wait * 2, 8000);
    };
  };
  open();
}
