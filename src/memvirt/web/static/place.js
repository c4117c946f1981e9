// SPDX-License-Identifier: Apache-2.0
// Where one is: the address bar keeps it, and "find" goes there.

import * as arrows from './arrows.js';
import { select } from './inquiry.js';
import * as pagemap from './pagemap.js';
import { store } from './store.js';

const DEEP = 28; // pages in view after a page was looked for
const FORM = /^\s*(ppn|mpn|gpa|gva)?\s*(0x[0-9a-f_`]+|\d+)\s*$/i;

let recalling = true;

/** Write what is shown into the address bar, so that it can be found again. */
export function remember() {
  if (recalling) return;
  const state = new URLSearchParams(), chosen = store.selection;
  if (store.vm !== null) state.set('vm', store.vm);
  if (chosen) state.set(chosen.kind, chosen[chosen.kind]);
  if (store.mode !== 'state') state.set('colour', store.mode);
  if (store.columns) state.set('columns', store.columns.join());
  if (store.past) state.set('moment', store.past.header.number);
  history.replaceState(null, '', `#${state}`);
}

/** Go where the address bar says. */
export async function recall({ mode, look, found }) {
  const state = new URLSearchParams(location.hash.slice(1)), vm = state.get('vm');
  if (state.has('colour')) mode(state.get('colour'));
  if (vm !== null && store.position(Number(vm)) >= 0) store.choose(Number(vm));
  for (const kind of ['gva', 'ppn', 'mpn']) if (state.has(kind)) await find(`${kind} ${state.get(kind)}`, found);
  if (state.has('moment')) await look(Number(state.get('moment')));
  recalling = false;
  remember();
}

/** Go to what people write: an address, "ppn N", "mpn N", "gpa N", or the name of a VM. */
export async function find(text, found) {
  const [, given, number] = FORM.exec(text) ?? [], kind = given?.toLowerCase();
  found('');
  if (!number) {
    const vm = store.vms.find(one => one.name === text.trim());
    if (vm) store.choose(vm.vm_id);
    else if (text.trim()) found('an address, ppn N, gpa N, mpn N, or a VM');
    return;
  }
  const value = BigInt(number.replace(/[_`]/g, '')), vm = store.vm, { lanes } = pagemap;
  const page = Number(kind === 'gpa' ? value >> 12n : value);
  let selection = { kind: 'gva', vm, gva: `0x${value.toString(16)}` }, lane = lanes.virtual, at = null;
  if (kind === 'ppn' || kind === 'gpa') { selection = { kind: 'ppn', vm, ppn: page }; lane = lanes.physical.get(vm); at = page; }
  if (kind === 'mpn') { selection = { kind: 'mpn', mpn: page }; lane = lanes.machine; at = page; }
  if (at !== null && lane && at >= lane.pages) { found('beyond its memory'); return; }
  await select(selection);
  if (at === null) at = pagemap.virtualIndex(selection.gva);
  if (at !== null && lane) lane.show(at, Math.max(Math.min(lane.span, lane.columns * lane.rows), DEEP));
  // The other ends of its arrows come into view too.
  for (const { from, to } of arrows.arrows()) for (const [other, end] of [from, to]) if (other.box(end).outside) other.show(end);
  pagemap.redraw();
}
