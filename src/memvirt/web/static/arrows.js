// SPDX-License-Identifier: Apache-2.0
// The overlay: names of the strips, addresses on big cells, and the arrows of what is selected. As in
// the document: solid from guest virtual to guest physical (the guest's tables), solid from there to
// machine memory (the pmap), dashed for what the processor walks (shadow or nested entries).

import { allLanes, lanes, observed, onLayout, virtualIndex, virtualPage } from './pagemap.js';
import { store } from './store.js';
import { svg } from './svg.js';
import { counted } from './words.js';

const MOST = 96; // arrows drawn one by one; more are bundled into one
const hex = number => '0x' + number.toString(16);
let overlay;

export function start(element) {
  overlay = element;
  onLayout(draw);
  for (const what of ['selection', 'answers', 'runs']) store.on(what, draw);
}

/** The arrows of the selection: { kind, from: [lane, page], to: [lane, page], count }. */
export function arrows() {
  const { map, frame } = store.answers, found = [];
  if (map) {
    const { vm } = store.selection, physical = lanes.physical.get(vm), virtual = vm === store.vm ? virtualIndex(map.gva) : null;
    const ppn = map.ppn === null ? null : Number(map.ppn), mpn = map.mpn === null ? null : Number(map.mpn);
    if (virtual !== null && ppn !== null && physical) found.push({ kind: 'guest', from: [lanes.virtual, virtual], to: [physical, ppn] });
    if (ppn !== null && mpn !== null && physical) found.push({ kind: 'pmap', from: [physical, ppn], to: [lanes.machine, mpn] });
    const last = map.second.at(-1), filled = last && last.points_to !== null && mpn !== null;
    if (filled && map.paging === 'shadow' && virtual !== null) found.push({ kind: 'shadow', from: [lanes.virtual, virtual], to: [lanes.machine, mpn] });
    if (filled && map.paging === 'nested' && physical && ppn !== null) found.push({ kind: 'nested', from: [physical, ppn], to: [lanes.machine, mpn] });
  }
  if (frame) found.push(...ofFrame(frame));
  return bundle(unique(found));
}

/** Every page of every VM that a frame backs, and where the chosen VM's addresses lead to it. */
function ofFrame(frame) {
  const found = [];
  for (const { vm, ppn, addresses } of frame.mappings) {
    const physical = lanes.physical.get(vm);
    if (!physical) continue;
    found.push({ kind: 'pmap', from: [physical, ppn], to: [lanes.machine, frame.mpn] });
    if (vm !== store.vm) continue;
    for (const address of addresses) {
      const virtual = virtualIndex(address);
      if (virtual !== null) found.push({ kind: 'guest', from: [lanes.virtual, virtual], to: [physical, ppn] });
    }
  }
  return found;
}

function unique(found) {
  const seen = new Map();
  for (const arrow of found) seen.set([arrow.kind, arrow.from[0].key, arrow.from[1], arrow.to[0].key, arrow.to[1]].join(), arrow);
  return [...seen.values()];
}

function bundle(found) {
  if (found.length <= MOST) return found.map(arrow => ({ ...arrow, count: 1 }));
  const bundles = new Map();
  for (const arrow of found) {
    const key = [arrow.kind, arrow.from[0].key, arrow.to[0].key].join();
    const held = bundles.get(key);
    if (held) held.count++; else bundles.set(key, { ...arrow, count: 1 });
  }
  return [...bundles.values()];
}

function curve(from, to, bend) {
  const [x1, y1] = [from.x + from.w / 2, from.y + from.h], [x2, y2] = [to.x + to.w / 2, to.y];
  const middle = (y2 - y1) / 2;
  return `M${x1} ${y1}C${x1 + bend} ${y1 + middle} ${x2 + bend} ${y2 - middle} ${x2} ${y2 - 5}`;
}

function lit(box, pick) {
  return svg('rect', { class: pick ? 'lit pick' : 'lit', x: box.x - 1.5, y: box.y - 1.5, width: box.w + 3, height: box.h + 3, rx: 3 });
}

function draw() {
  if (!overlay || !store.header) return;
  const width = overlay.clientWidth, height = overlay.clientHeight;
  overlay.setAttribute('viewBox', `0 0 ${width} ${height}`);
  const parts = [heads(), ...names(), ...addresses()];
  for (const { kind, from, to, count } of arrows()) {
    const start = from[0].box(from[1]), end = to[0].box(to[1]);
    const bend = kind === 'shadow' || kind === 'nested' ? 26 : 0;
    parts.push(svg('path', {
      class: `arrow ${kind}`, d: curve(start, end, bend), 'marker-end': `url(#head-${kind === 'nested' ? 'shadow' : kind})`,
      'data-from': `${from[0].key}:${from[1]}`, 'data-to': `${to[0].key}:${to[1]}`,
    }));
    if (count > 1) parts.push(svg('text', { x: (start.x + end.x) / 2 + 6, y: (start.y + end.y) / 2 }, counted(count, 'mapping')));
    if (!start.outside) parts.push(lit(start));
    if (!end.outside) parts.push(lit(end));
  }
  const picked = selectedBox();
  if (picked && !picked.outside) parts.push(lit(picked, true));
  overlay.replaceChildren(...parts);
}

function selectedBox() {
  const chosen = store.selection;
  if (!chosen) return null;
  if (chosen.kind === 'mpn') return lanes.machine.box(chosen.mpn);
  if (chosen.kind === 'ppn') return lanes.physical.get(chosen.vm)?.box(chosen.ppn) ?? null;
  const index = chosen.vm === store.vm ? virtualIndex(chosen.gva) : null;
  return index === null ? null : lanes.virtual.box(index);
}

function heads() {
  return svg('defs', {}, ...['guest', 'pmap', 'shadow'].map(kind => svg('marker',
    { id: `head-${kind}`, viewBox: '0 0 8 8', refX: 5, refY: 4, markerWidth: 7, markerHeight: 7, orient: 'auto' },
    svg('path', { class: `head ${kind}`, d: 'M0 0L8 4L0 8Z' }))));
}

function names() {
  const vm = store.vms[store.position(store.vm)], made = [];
  const heading = (lane, title, more, shift = 0) => made.push(svg('text', { class: 'lane', x: 10, y: lane.y - 7 },
    title, svg('tspan', { class: 'quiet', dx: 10, 'font-weight': 400 }, more)));
  const known = store.past && store.runs.past ? ` (${store.runs.past})` : '';
  heading(lanes.virtual, 'Guest virtual', vm ? `the addresses that programs in ${vm.name.slice(0, 24)} use${known}` : '');
  const first = lanes.physical.values().next().value;
  if (first) heading(first, 'Guest physical', '');
  heading(lanes.machine, 'Machine', `${counted(store.hello?.frames ?? 0, 'frame')}: the host’s real memory`);
  const source = store.mode === 'activity' && observed() ? '   · activity: touches are seen as hidden page faults, while it is shown' : '';
  made.push(...kinds(lanes.virtual, [['guest', `the guest’s page tables${source}`]]));
  const walked = vm?.paging === 'shadow' ? 'shadow tables: from virtual, what the processor walks' : 'nested tables: what the processor walks';
  const last = [...lanes.physical.values()].at(-1);
  if (last) made.push(...kinds(last, [['pmap', 'pmap: the hypervisor’s map'], ['shadow', walked]]));
  for (const [id, lane] of lanes.physical) {
    const one = store.vms[store.position(id)];
    if (!one || lane.h < 9) continue;
    const text = svg('text', { class: id === store.vm ? 'lane' : '', x: 10, y: lane.y + Math.min(lane.h / 2 + 4, line()) }, clip(one.name, lane.label));
    made.push(text);
    if (lane.h >= 2 * line()) made.push(svg('text', { class: 'quiet', x: 10, y: lane.y + 2 * line() }, one.outcome ? clip(one.outcome, lane.label) : clip(`${one.paging} ${one.condition}`, lane.label)));
  }
  return made;
}

/** What the arrows below a strip mean. */
function kinds(lane, meanings) {
  const made = [], y = lane.y + lane.rows * lane.cell + line() - 2, letter = line() * .48;
  let x = 10;
  for (const [kind, meaning] of meanings) {
    made.push(svg('path', { class: `key ${kind}`, d: `M${x} ${y - 4}h${line() * 1.7}`, 'marker-end': `url(#head-${kind})` }),
      svg('text', { class: 'quiet', x: x + line() * 2.3, y }, meaning));
    x += line() * 3.4 + meaning.length * letter;
  }
  return made;
}

/** Height of a line of the overlay's text. */
function line() { return innerWidth >= 2400 ? 20 : 14; }

function clip(text, pixels) {
  const most = Math.max(Math.floor(pixels / (line() * .52)) - 1, 4);
  return text.length > most ? text.slice(0, most - 1) + '…' : text;
}

function addresses() {
  const made = [];
  for (const lane of allLanes()) {
    if (lane.cell < 40 || lane.perCell > 1) continue;
    for (let page = lane.first; page <= lane.last; page++) {
      const box = lane.box(page);
      const found = lane.kind === 'virtual' ? virtualPage(page) : null;
      const text = lane.kind === 'virtual' ? (found ? found[0].toString(16).slice(-7) : '') : hex(page);
      made.push(svg('text', { class: 'address', x: box.x + 3, y: box.y + 12 }, text));
    }
  }
  return made;
}
