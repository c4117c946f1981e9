// SPDX-License-Identifier: Apache-2.0
// The keyboard: everything the pointer can do, and the list of it.

import * as details from './details.js';
import { select } from './inquiry.js';
import * as lesson from './lesson.js';
import * as pagemap from './pagemap.js';
import { store } from './store.js';
import { html } from './svg.js';
import * as timeline from './timeline.js';

const hex = value => `0x${value.toString(16)}`;

/** The lane of the selection, or the one that was used last. */
function lane() {
  const chosen = store.selection;
  if (chosen?.kind === 'mpn') return pagemap.lanes.machine;
  if (chosen?.kind === 'gva') return pagemap.lanes.virtual;
  return chosen ? pagemap.lanes.physical.get(chosen.vm) : pagemap.focusedLane();
}

/** Index in its lane of what is selected, or null. */
function index() {
  const chosen = store.selection;
  if (!chosen) return null;
  return chosen.kind === 'mpn' ? chosen.mpn : chosen.kind === 'ppn' ? chosen.ppn : pagemap.virtualIndex(chosen.gva);
}

export function selectionAt(where, page) {
  if (where.kind === 'machine') return { kind: 'mpn', mpn: page };
  if (where.kind === 'physical') return { kind: 'ppn', vm: where.vm, ppn: page };
  const found = pagemap.virtualPage(page);
  return found ? { kind: 'gva', vm: store.vm, gva: hex(found[0]) } : null;
}

/** Select a page of a lane and bring it into view. */
function go(where, page) {
  if (!where || page === null || page < 0 || page >= where.pages) return;
  const selection = selectionAt(where, page);
  if (!selection) return;
  pagemap.focusLane(where);
  if (where.box(page).outside) where.show(page);
  select(selection);
  pagemap.redraw();
}

function neighbour(way) {
  const at = index();
  go(lane(), at === null ? lane().first : at + way);
}

/** Follow the arrows of what is selected, to the strip `kind`. */
function follow(kind) {
  const { map, page, frame } = store.answers, chosen = store.selection, vm = chosen?.vm ?? frame?.mappings[0]?.vm ?? store.vm;
  const physical = pagemap.lanes.physical.get(vm);
  const ppn = chosen?.kind === 'ppn' ? chosen.ppn : page?.ppn ?? (map?.ppn != null ? Number(map.ppn) : frame?.mappings[0]?.ppn ?? null);
  const address = map?.gva ?? page?.addresses[0] ?? frame?.mappings.find(one => one.vm === store.vm)?.addresses[0];
  if (kind === 'machine') {
    const mpn = frame?.mpn ?? page?.mpn ?? (map?.mpn != null ? Number(map.mpn) : null);
    go(pagemap.lanes.machine, mpn ?? (chosen ? null : 0));
  } else if (kind === 'physical') go(physical, ppn ?? (chosen ? null : 0));
  else go(pagemap.lanes.virtual, address ? pagemap.virtualIndex(address) : chosen ? null : 0);
}

function typeToGuest() {
  const keyboard = document.getElementById('keys-to-keyboard'); // there while a text screen is shown
  if (!keyboard) details.show('console');
  (keyboard ?? document.getElementById('keys-to-guest')).focus();
}

function nextVm(way) {
  const at = store.position(store.vm) + way;
  if (at >= 0 && at < store.vms.length) store.choose(store.vms[at].vm_id);
}

function zoom(factor) {
  lane().zoom(factor, index() ?? undefined);
  pagemap.redraw();
}

function pan(way) { lane().pan(way * lane().span / 4); pagemap.redraw(); }
function everything() { for (const one of pagemap.allLanes()) one.zoom(1e9); pagemap.redraw(); }

/** [shown, meaning, { key: action }] of everything; `actions` are those of the page. */
function list(actions) {
  return [
    ['space', 'run or pause', { ' ': actions.toggle }],
    ['.', 'one round', { '.': actions.step }],
    ['< >', 'slower, faster', { '<': () => actions.speed(-1), '>': () => actions.speed(1) }],
    ['← →', 'select the page before or after', { ArrowLeft: () => neighbour(-1), ArrowRight: () => neighbour(1) }],
    ['v g m', 'follow the arrows: to guest virtual, guest physical, machine memory', { v: () => follow('virtual'), g: () => follow('physical'), m: () => follow('machine') }],
    ['↑ ↓', 'the VM above or below', { ArrowUp: () => nextVm(-1), ArrowDown: () => nextVm(1) }],
    ['+ −', 'zoom the strip in or out', { '+': () => zoom(1 / 1.5), '=': () => zoom(1 / 1.5), '-': () => zoom(1.5) }],
    ['page up, page down', 'move along the strip', { PageUp: () => pan(-1), PageDown: () => pan(1) }],
    ['0', 'all of every strip', { 0: everything }],
    ['/', 'find an address, ppn N, gpa N, mpn N, or a VM', { '/': actions.find }],
    ['[ ]', 'a moment back or on', { '[': () => timeline.step(-1), ']': () => timeline.step(1) }],
    ['{ }', 'ten moments back or on', { '{': () => timeline.step(-10), '}': () => timeline.step(10) }],
    ['home', 'now', { Home: () => actions.look(null) }],
    ['1 … 6', 'walk, life, bytes, console, text screen, decisions', Object.fromEntries(details.names().map((name, i) => [i + 1, () => details.show(name)]))],
    ['k', 'type on the console of the VM, or at its keyboard where the text screen is shown; shift tab leaves', { k: typeToGuest }],
    ['e', 'settings of the VM', { e: () => document.querySelector('#settings input')?.focus() }],
    ['o', 'columns of the table', { o: actions.columns }],
    ['c', 'what colours mean: state, owner, activity, salt', { c: actions.mode }],
    ['p', 'the other palette', { p: actions.palette }],
    ['d', 'light or dark', { d: actions.theme }],
    ['t', 'the lesson', { t: () => lesson.open() }],
    ['s', 'save as PNG; shift: as SVG', { s: () => actions.save('png'), S: () => actions.save('svg') }],
    ['esc', 'let go of the selection', { Escape: actions.release }],
    ['?', 'this list', { '?': () => document.getElementById('keys').showModal() }],
  ];
}

export function start(actions) {
  const all = list(actions), dialog = document.getElementById('keys');
  const bound = Object.assign({}, ...all.map(([, , keys]) => keys));
  document.addEventListener('keydown', event => {
    if (event.ctrlKey || event.altKey || event.metaKey || document.querySelector('dialog[open]')) return;
    if (event.target.matches('input, select, textarea') && !event.target.closest('dialog')) { if (event.key === 'Escape') event.target.blur(); return; }
    if ((event.key === ' ' || event.key === 'Enter') && event.target.matches('button, th')) return;
    const action = Object.hasOwn(bound, event.key) ? bound[event.key] : null;
    if (action) { event.preventDefault(); action(); }
  });
  // Keys are the page's again when a dialog has closed.
  for (const one of document.querySelectorAll('dialog')) one.addEventListener('close', () => document.activeElement?.blur());
  dialog.append(html('h2', {}, 'Keys'), html('table', {}, html('tbody', {}, ...all.map(([shown, meaning]) =>
    html('tr', {}, html('td', {}, html('kbd', {}, shown)), html('td', {}, meaning))))), html('form', { method: 'dialog' }, html('button', {}, 'close')));
}
