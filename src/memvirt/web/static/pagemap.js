// SPDX-License-Identifier: Apache-2.0
// The centre of the page: guest virtual, guest physical (a lane a VM) and machine memory.

import { activityColour, frameColours, guestColours, rgb, useColours, vmColour } from './colors.js';
import { Lane } from './lane.js';
import { painterFor } from './painter.js';
import { store } from './store.js';

const HEADING = 20, MARGIN = 10, GAP = 34; // room for the arrows between strips
const VIRTUAL = ['virtual', 'use:virtual']; // parts that are made here
/** When a page was touched last, by use class. */
export const USES = ['not in memory', 'not seen yet', 'longer ago', '64 rounds ago', '8 rounds ago', 'touched just now'];
const hex = number => '0x' + number.toString(16);

export const lanes = { virtual: new Lane('virtual', 'virtual', 1), physical: new Map(), machine: new Lane('machine', 'machine', 1) };
let canvas, painter, focused = null, scheduled = false;
const listeners = [];

export function onLayout(listener) { listeners.push(listener); }
export function allLanes() { return [lanes.virtual, ...lanes.physical.values(), lanes.machine]; }
export function laneAt(x, y) { return allLanes().find(lane => lane.contains(x, y)) ?? null; }
export function focusLane(lane) { focused = lane; }
export function focusedLane() { return focused ?? lanes.physical.get(store.vm) ?? lanes.machine; }

export function start(element) {
  canvas = element;
  const { painter: made, webgl } = painterFor(canvas);
  painter = made;
  painter.onrestore = () => redraw();
  new ResizeObserver(redraw).observe(canvas);
  store.on('frame', ({ changed }) => { painter.stale(changed); painter.stale(VIRTUAL); update(); });
  store.on('runs', () => { painter.stale(VIRTUAL); update(); });
  store.on('vm', update);
  return webgl;
}

/** Pages of guest virtual memory stand in a row without the holes between them. */
export function virtualIndex(gva) {
  const address = BigInt(gva);
  let at = 0;
  for (const [start, , pages] of store.runs.runs) {
    const offset = (address - BigInt(start)) >> 12n;
    if (offset >= 0n && offset < BigInt(pages)) return at + Number(offset);
    at += pages;
  }
  return null;
}

/** [gva (BigInt), ppn, rights] of a page of that row, or null. */
export function virtualPage(index) {
  for (const [start, ppn, pages, , rights] of store.runs.runs) {
    if (index < pages) return [BigInt(start) + (BigInt(index) << 12n), ppn + index, rights];
    index -= pages;
  }
  return null;
}

/** Classes of the row: each page has that of the guest-physical page behind it, from one of its parts. */
function virtualClasses(part) {
  const physical = store.parts.get(part) ?? new Uint8Array(0);
  const total = store.runs.runs.reduce((sum, run) => sum + run[2], 0);
  const classes = new Uint8Array(total);
  let at = 0;
  for (const [, ppn, pages] of store.runs.runs) {
    const inside = Math.max(Math.min(pages, physical.length - ppn), 0);
    classes.set(physical.subarray(ppn, ppn + inside), at);
    at += pages;
  }
  return classes;
}

function update() {
  const present = new Set();
  for (const vm of store.vms) {
    present.add(vm.vm_id);
    if (!lanes.physical.has(vm.vm_id)) lanes.physical.set(vm.vm_id, new Lane('physical', `vm:${vm.vm_id}`, vm.pages));
    const lane = lanes.physical.get(vm.vm_id);
    lane.vm = vm.vm_id;
    lane.resize(vm.pages);
  }
  for (const id of lanes.physical.keys()) if (!present.has(id)) lanes.physical.delete(id);
  if (store.hello?.frames) lanes.machine.resize(store.hello.frames);
  redraw();
}

export function redraw() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => { scheduled = false; paint(); });
}

function layout(width, height) {
  const count = Math.max(lanes.physical.size, 1);
  const room = height - 3 * HEADING - 2 * GAP - MARGIN - 10 - (count - 1) * 3;
  const upper = Math.round(room * 0.17), lower = Math.round(room * 0.3), middle = room - upper - lower;
  const wide = width - 2 * MARGIN, label = Math.min(Math.max(wide * 0.13, 70), innerWidth >= 2400 ? 300 : 170);
  let y = HEADING + 14;
  lanes.virtual.place(MARGIN, y, wide, upper);
  y += upper + GAP + HEADING;
  const each = middle / count;
  for (const lane of lanes.physical.values()) {
    lane.place(MARGIN + label, Math.round(y), wide - label, Math.max(Math.floor(each) - 3, 5));
    lane.label = label;
    y += each;
  }
  y += GAP + HEADING - 6;
  lanes.machine.place(MARGIN, Math.round(y), wide, Math.max(height - MARGIN - Math.round(y), 8));
}

function scaled(lane, ratio, extra) {
  const at = length => Math.round(length * ratio);
  return {
    x: at(lane.x), y: at(lane.y), w: at(lane.columns * lane.cell), h: at(lane.rows * lane.cell),
    first: lane.first, count: lane.pages, perCell: lane.perCell, columns: lane.columns,
    cell: [lane.cell * ratio, lane.cell * ratio], gap: lane.gap * ratio, part: lane.key, ...extra,
  };
}

/** Groups of VMs that may share pages with each other: those of one salt. */
export function ownerGroups() { return [...new Set(store.vms.map(vm => vm.group || `alone ${vm.vm_id}`))]; }

export function ownerColours() {
  const groups = ownerGroups();
  const colour = (vm, position) => {
    if (store.mode === 'activity') return activityColour(Math.min(vm.active_percent / 100, 1));
    if (store.mode === 'salt') return vmColour(groups.indexOf(vm.group || `alone ${vm.vm_id}`));
    return vmColour(position);
  };
  return [[0, 0, 0], ...store.vms.map((vm, position) => rgb(colour(vm, position)))];
}

function paint() {
  const width = canvas.clientWidth, height = canvas.clientHeight, ratio = devicePixelRatio || 1;
  if (!width || !height) return;
  if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
  if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
  const parts = new Map(store.parts);
  parts.set('virtual', virtualClasses(`vm:${store.vm}`));
  lanes.virtual.resize(Math.max(parts.get('virtual').length, 1));
  layout(width, height);
  const guest = guestColours().map(rgb), frame = frameColours().map(rgb);
  const use = store.mode === 'activity' && observed(), owned = store.mode === 'state' || use ? null : ownerColours();
  const uses = useColours().map(rgb), none = guest.map(() => uses[0]);
  if (use) parts.set('use:virtual', virtualClasses(`use:${store.vm}`));
  const used = part => ({ colours: none, second: part, secondColours: uses });
  const drawn = [scaled(lanes.virtual, ratio, use ? used('use:virtual') : { colours: guest })];
  for (const [id, lane] of lanes.physical) {
    const colours = owned ? [guest[0], ...guest.slice(1).map(() => owned[store.position(id) + 1])] : guest;
    drawn.push(scaled(lane, ratio, use ? used(`use:${id}`) : { colours }));
  }
  drawn.push(scaled(lanes.machine, ratio, use ? used('use:machine') : { colours: frame, second: owned ? 'owners' : null, secondColours: owned ?? [] }));
  painter.draw(drawn, parts, rgb(panelColour()));
  for (const listener of listeners) listener();
}

function panelColour() { return getComputedStyle(document.documentElement).getPropertyValue('--panel').trim().replace(/^#(.)(.)(.)$/, '#$1$1$2$2$3$3'); }

/** Whether it is known of single pages when they were touched. */
export function observed() { return store.parts.has('use:machine'); }

/** When a page was touched last, where that is shown. */
function used(part, page) {
  const value = store.mode === 'activity' ? store.parts.get(part)?.[page] ?? 0 : 0;
  return value ? `  touched: ${USES[value]}` : '';
}

/** What a page is, for people. */
export function describe(lane, page) {
  const classes = store.parts.get(lane.key), hello = store.hello;
  if (lane.kind === 'machine') return `MPN ${hex(page)}  ${hello.frame_classes[classes?.[page] ?? 0]}${ownerName(page)}${used('use:machine', page)}`;
  if (lane.kind === 'physical') {
    const vm = store.vms[store.position(lane.vm)];
    return `${vm?.name ?? ''}  PPN ${hex(page)}  ${hello.guest_classes[classes?.[page] ?? 0]}${used(`use:${lane.vm}`, page)}`;
  }
  const found = virtualPage(page);
  return found ? `gVA 0x${found[0].toString(16)}  →  PPN ${hex(found[1])}  ${found[2]}` : '';
}

function ownerName(mpn) {
  const owner = store.parts.get('owners')?.[mpn] ?? 0;
  return owner ? `  of ${store.vms[owner - 1]?.name ?? 'a VM that left'}` : '';
}

export function image() { paint(); return canvas; }
