// SPDX-License-Identifier: Apache-2.0
// Puts the page together: selection and questions, the controls, keys, the address bar.

import * as arrows from './arrows.js';
import { otherPalette, paletteName, usePalette } from './colors.js';
import { ask, command, connect, frameAt } from './connection.js';
import * as details from './details.js';
import * as legend from './legend.js';
import * as lesson from './lesson.js';
import * as memorybar from './memorybar.js';
import * as pagemap from './pagemap.js';
import { asPng, asSvg, download } from './save.js';
import { store } from './store.js';
import { html } from './svg.js';
import * as timeline from './timeline.js';
import * as vmtable from './vmtable.js';

const by = id => document.getElementById(id);
const SPEEDS = [[2, '2 rounds/s'], [5, '5'], [20, '20'], [60, '60'], [0, 'as fast as it goes']];
const MODES = [['state', 'state'], ['owner', 'owner'], ['activity', 'activity'], ['salt', 'salt']];
const DEEP = 28; // pages in view after a page was looked for

// Notices ---------------------------------------------------------------------------------------

function notice(text) {
  by('notice').textContent = text;
  by('notice').hidden = !text;
}

// Selection and questions -------------------------------------------------------------------------

let turn = 0;

/** Select a page or an address, and ask what is known of it. A pointer that only hovers asks less. */
async function select(selection, { hover = false } = {}) {
  const mine = ++turn;
  store.select(selection);
  if (!hover) remember();
  if (!selection || !store.hello?.can.includes('ask') || store.past) return;
  try {
    const answers = await questions(selection, hover);
    if (mine !== turn) return;
    store.answers = answers;
  } catch (error) {
    if (mine !== turn) return;
    store.answers = { error: error.message };
  }
  store.changed('answers');
}

async function questions(selection, hover) {
  if (selection.kind === 'mpn') return { frame: await ask('frame', { mpn: selection.mpn }) };
  let gva = selection.gva, page;
  if (selection.kind === 'ppn') {
    page = await ask('page', { vm: selection.vm, ppn: selection.ppn });
    gva = page.addresses.find(address => pagemap.virtualIndex(address) !== null) ?? page.addresses[0];
  }
  const map = gva === undefined ? null : await ask('map', { vm: selection.vm, gva });
  if (!page && !hover && map?.ppn != null && map.state) page = await ask('page', { vm: selection.vm, ppn: Number(map.ppn) });
  const frame = page?.mpn != null && page.state === 'shared' ? await ask('frame', { mpn: page.mpn }) : null;
  return { map, page, frame };
}

function selectionAt(lane, page) {
  if (lane.kind === 'machine') return { kind: 'mpn', mpn: page };
  if (lane.kind === 'physical') return { kind: 'ppn', vm: lane.vm, ppn: page };
  const found = pagemap.virtualPage(page);
  return found ? { kind: 'gva', vm: store.vm, gva: `0x${found[0].toString(16)}` } : null;
}

let runsWanted = false, runsBusy = false;

/** What the chosen VM's tables map: asked for again when the host has moved on, not all the time. */
async function refreshRuns() {
  if (runsBusy) { runsWanted = true; return; }
  if (store.vm === null || store.past || !store.hello?.can.includes('ask')) return;
  runsBusy = true;
  try {
    const answer = await ask('virtual', { vm: store.vm });
    if (answer.vm === store.vm) { store.runs = answer; store.changed('runs'); }
  } catch { /* the VM is gone: the next frame says so */ }
  setTimeout(() => { runsBusy = false; if (runsWanted) { runsWanted = false; refreshRuns(); } }, 400);
}

let eventsSeen = 0, eventsBusy = false;

async function refreshEvents() {
  if (eventsBusy || store.live.header.events === eventsSeen) return;
  eventsBusy = true;
  const upTo = store.live.header.events;
  try {
    const news = await ask('events', { since: eventsSeen });
    eventsSeen = upTo;
    store.events.push(...news.slice(-20000));
    store.changed('events');
  } catch { /* asked for again with the next frame */ }
  eventsBusy = false;
}

// Time --------------------------------------------------------------------------------------------

let looking = 0;

async function look(number) {
  const mine = ++looking;
  if (number === null) { store.look(null); notice(''); return; }
  if (!store.hello.can.includes('history')) { store.look(store.moments?.(number) ?? null); return; }
  try {
    const past = await frameAt(number);
    if (mine === looking) { store.look(past); notice(''); }
  } catch (error) { notice(error.message); }
}

const control = (name, value) => command('control', { command: name, value: value ?? 0 }).catch(error => notice(error.message));
const toggle = () => { look(null); control(store.live.header?.playing ? 'pause' : 'play'); };

function speed(way) {
  const at = SPEEDS.findIndex(([value]) => value === store.live.header?.speed);
  const next = SPEEDS[Math.max(0, Math.min(at + way, SPEEDS.length - 1))];
  control('speed', next[0]);
}

// Top -----------------------------------------------------------------------------------------------

function top() {
  const header = store.header, host = header?.host;
  if (!host) return;
  const state = store.hello.states[host.state];
  by('state').textContent = state;
  by('state').dataset.state = state;
  const running = header.vms.filter(vm => vm.condition !== 'off'), configured = running.reduce((sum, vm) => sum + vm.memory, 0);
  const bold = text => html('b', {}, text);
  by('figures').replaceChildren(
    bold(`${running.length}`), ' VMs, ', bold(`${(configured / 256).toFixed(0)} MB`), ' on ', bold(`${(host.total / 256).toFixed(0)} MB`),
    ', ', bold(`${(configured / host.total).toFixed(2)} x`), html('span', { class: 'wide' }, ' overcommitted'), ' · ', bold(`${(host.time_ns / 1e9).toFixed(2)} s`), html('span', { class: 'wide' }, ' virtual'),
    html('span', { class: 'wide' }, ` · wall ${header.wall?.toFixed(1) ?? '–'} s`), ` · round ${header.round}`, store.past ? bold(' · looking back') : '', header.done ? bold(' · all VMs have ended') : '');
  const live = store.live.header;
  by('play').textContent = live.playing ? '❚❚ pause' : '▶ run';
  by('play').setAttribute('aria-pressed', Boolean(live.playing));
  by('speed').value = String(live.speed ?? 0);
  if (header.error) notice(`the host cannot go on: ${header.error}`);
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  try { localStorage.setItem('memvirt-theme', name); } catch { /* private browsing */ }
  store.changed('frame', { changed: [] });
}

function palette(name) {
  usePalette(name);
  by('palette').setAttribute('aria-pressed', name === 'okabe');
  try { localStorage.setItem('memvirt-palette', name); } catch { /* private browsing */ }
  store.changed('frame', { changed: [] });
}

function mode(name) {
  store.mode = name;
  by('mode').value = name;
  remember();
  store.changed('frame', { changed: [] });
}

// The address bar -------------------------------------------------------------------------------------

function remember() {
  const state = new URLSearchParams(), chosen = store.selection;
  if (store.vm !== null) state.set('vm', store.vm);
  if (chosen) state.set(chosen.kind, chosen.kind === 'gva' ? chosen.gva : chosen.kind === 'ppn' ? chosen.ppn : chosen.mpn);
  if (store.mode !== 'state') state.set('colour', store.mode);
  history.replaceState(null, '', `#${state}`);
}

function recall() {
  const state = new URLSearchParams(location.hash.slice(1)), vm = Number(state.get('vm') ?? NaN);
  if (MODES.some(([name]) => name === state.get('colour'))) mode(state.get('colour'));
  if (!Number.isNaN(vm) && store.position(vm) >= 0) store.choose(vm);
  if (state.has('gva')) find(state.get('gva'));
  else if (state.has('ppn')) find(`ppn ${state.get('ppn')}`);
  else if (state.has('mpn')) find(`mpn ${state.get('mpn')}`);
}

/** Go to what people write: an address, "ppn N", "mpn N", "gpa N", or the name of a VM. */
async function find(text) {
  const [, kind, number] = /^\s*(ppn|mpn|gpa|gva)?\s*(0x[0-9a-f_`]+|\d+)\s*$/i.exec(text) ?? [];
  by('found').textContent = '';
  if (!number) {
    const vm = store.vms.find(one => one.name === text.trim());
    if (vm) store.choose(vm.vm_id); else if (text.trim()) by('found').textContent = 'an address, ppn N, mpn N, or a VM';
    return;
  }
  const value = BigInt(number.replace(/[_`]/g, '')), vm = store.vm;
  const page = kind?.toLowerCase() === 'gpa' ? Number(value >> 12n) : Number(value);
  let selection = { kind: 'gva', vm, gva: `0x${value.toString(16)}` }, lane = pagemap.lanes.virtual, at = null;
  if (kind && /ppn|gpa/i.test(kind)) { selection = { kind: 'ppn', vm, ppn: page }; lane = pagemap.lanes.physical.get(vm); at = page; }
  if (kind && /mpn/i.test(kind)) { selection = { kind: 'mpn', mpn: page }; lane = pagemap.lanes.machine; at = page; }
  if (at !== null && lane && at >= lane.pages) { by('found').textContent = 'beyond its memory'; return; }
  await select(selection);
  if (at === null) at = pagemap.virtualIndex(selection.gva);
  if (at !== null && lane) lane.show(at, Math.max(Math.min(lane.span, lane.columns * lane.rows), DEEP));
  reveal();
  pagemap.redraw();
}

/** Bring the other ends of the selection's arrows into view. */
function reveal() {
  for (const { from, to } of arrows.arrows()) for (const [lane, page] of [from, to]) if (lane.box(page).outside) lane.show(page);
}

// Pointer and keys --------------------------------------------------------------------------------------

let pinned = false, hoverTimer = 0, drag = null;

function pointer(canvas) {
  canvas.addEventListener('pointermove', event => {
    const lane = pagemap.laneAt(event.offsetX, event.offsetY), page = lane?.pageAt(event.offsetX, event.offsetY) ?? null;
    if (drag) {
      drag.lane.pan((drag.x - event.offsetX) / drag.lane.cell * drag.lane.perCell * 1);
      drag.x = event.offsetX; drag.moved = true;
      pagemap.redraw();
      return;
    }
    tip(event, lane, page);
    clearTimeout(hoverTimer);
    if (page !== null && !pinned) hoverTimer = setTimeout(() => select(selectionAt(lane, page), { hover: true }), 60);
  });
  canvas.addEventListener('pointerleave', () => { by('tip').hidden = true; clearTimeout(hoverTimer); });
  canvas.addEventListener('pointerdown', event => {
    const lane = pagemap.laneAt(event.offsetX, event.offsetY);
    if (lane) { drag = { lane, x: event.offsetX, moved: false }; pagemap.focusLane(lane); canvas.setPointerCapture(event.pointerId); }
  });
  canvas.addEventListener('pointerup', event => {
    const was = drag;
    drag = null;
    if (!was || was.moved) return;
    const page = was.lane.pageAt(event.offsetX, event.offsetY);
    pinned = page !== null;
    clearTimeout(hoverTimer);
    select(page === null ? null : selectionAt(was.lane, page)).then(pagemap.redraw);
  });
  canvas.addEventListener('wheel', event => {
    event.preventDefault();
    const lane = pagemap.laneAt(event.offsetX, event.offsetY);
    if (!lane) return;
    pagemap.focusLane(lane);
    if (event.shiftKey) lane.pan(Math.sign(event.deltaY || event.deltaX) * lane.span / 10);
    else lane.zoom(event.deltaY > 0 ? 1.3 : 1 / 1.3, lane.pageAt(event.offsetX, event.offsetY) ?? undefined);
    pagemap.redraw();
  }, { passive: false });
}

function tip(event, lane, page) {
  by('tip').hidden = page === null;
  if (page === null) return;
  const many = lane.perCell > 1 ? `  (a cell is ${Math.ceil(lane.perCell)} pages)` : '';
  by('tip').textContent = pagemap.describe(lane, page) + many;
  const room = by('centre').clientWidth - by('tip').offsetWidth - 6;
  by('tip').style.left = `${Math.max(Math.min(event.offsetX + 14, room), 4)}px`;
  by('tip').style.top = `${Math.max(event.offsetY - 30, 2)}px`;
}

function neighbour(way) {
  const chosen = store.selection;
  if (!chosen) return;
  if (chosen.kind === 'mpn') select({ kind: 'mpn', mpn: Math.max(chosen.mpn + way, 0) });
  else if (chosen.kind === 'ppn') select({ ...chosen, ppn: Math.max(chosen.ppn + way, 0) });
  else {
    const found = pagemap.virtualPage(Math.max((pagemap.virtualIndex(chosen.gva) ?? 0) + way, 0));
    if (found) select({ ...chosen, gva: `0x${found[0].toString(16)}` });
  }
}

function nextVm(way) {
  const at = store.position(store.vm) + way;
  if (at >= 0 && at < store.vms.length) store.choose(store.vms[at].vm_id);
}

const KEYS = [
  ['space', 'run or pause', ' ', toggle], ['.', 'one round', '.', () => control('step', 1)],
  ['+ −', 'zoom the strip in or out', '+', () => zoom(1 / 1.5)], ['', '', '=', () => zoom(1 / 1.5)], ['', '', '-', () => zoom(1.5)],
  ['← →', 'the page before or after the selected one', 'ArrowLeft', () => neighbour(-1)], ['', '', 'ArrowRight', () => neighbour(1)],
  ['↑ ↓', 'the VM above or below', 'ArrowUp', () => nextVm(-1)], ['', '', 'ArrowDown', () => nextVm(1)],
  ['[ ]', 'a moment back or on; home: now', '[', () => timeline.step(-1)], ['', '', ']', () => timeline.step(1)], ['', '', 'Home', () => look(null)],
  ['< >', 'slower, faster', '<', () => speed(-1)], ['', '', '>', () => speed(1)],
  ['/', 'find an address, ppn N, mpn N, a VM', '/', () => by('address').focus()],
  ['1 … 5', 'walk, life, bytes, console, decisions', '1', () => details.show('walk')], ['', '', '2', () => details.show('life')], ['', '', '3', () => details.show('bytes')], ['', '', '4', () => details.show('console')], ['', '', '5', () => details.show('decisions')],
  ['c', 'what colours mean: state, owner, activity, salt', 'c', () => mode(MODES[(MODES.findIndex(([name]) => name === store.mode) + 1) % MODES.length][0])],
  ['p', 'the other palette', 'p', () => palette(otherPalette())], ['d', 'light or dark', 'd', () => theme(document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark')],
  ['t', 'the lesson', 't', () => lesson.open()], ['s', 'save as PNG; shift: as SVG', 's', () => save('png')], ['', '', 'S', () => save('svg')],
  ['0', 'all of every strip', '0', () => { for (const lane of pagemap.allLanes()) lane.zoom(1e9); pagemap.redraw(); }],
  ['esc', 'let go of the selection', 'Escape', () => { pinned = false; select(null); }], ['?', 'this list', '?', () => by('keys').showModal()],
];

function zoom(factor) {
  const lane = pagemap.focusedLane(), chosen = store.selection;
  const at = chosen?.kind === 'mpn' && lane === pagemap.lanes.machine ? chosen.mpn : chosen?.kind === 'ppn' && lane.vm === chosen.vm ? chosen.ppn : undefined;
  lane.zoom(factor, at);
  pagemap.redraw();
}

function keys() {
  document.addEventListener('keydown', event => {
    if (event.ctrlKey || event.altKey || event.metaKey || document.querySelector('dialog[open]')) return;
    if (event.target.matches('input, select, textarea')) { if (event.key === 'Escape') event.target.blur(); return; }
    if (event.key === ' ' && event.target.matches('button, [role="tab"]')) return;
    const found = KEYS.find(([, , key]) => key === event.key);
    if (found) { event.preventDefault(); found[3](); }
  });
  by('keys').append(html('h2', {}, 'Keys'), html('table', {}, html('tbody', {}, ...KEYS.filter(([shown]) => shown).map(([shown, meaning]) =>
    html('tr', {}, html('td', {}, html('kbd', {}, shown)), html('td', {}, meaning))))), html('form', { method: 'dialog' }, html('button', {}, 'close')));
}

async function save(kind) {
  const overlay = by('overlay'), name = `memvirt-${store.header.number}.${kind}`;
  download(kind === 'png' ? await asPng(overlay) : new Blob([asSvg(overlay)], { type: 'image/svg+xml' }), name);
}

// Start -----------------------------------------------------------------------------------------------

function recalled(name) { try { return localStorage.getItem(name); } catch { return null; } }

function begin() {
  const dark = matchMedia('(prefers-color-scheme: dark)').matches;
  document.documentElement.dataset.theme = recalled('memvirt-theme') ?? (dark ? 'dark' : 'light');
  palette(recalled('memvirt-palette') ?? paletteName());
  by('speed').append(...SPEEDS.map(([value, name]) => html('option', { value }, name)));
  by('mode').append(...MODES.map(([value, name]) => html('option', { value }, name)));
  const webgl = pagemap.start(by('pages'));
  arrows.start(by('overlay'));
  legend.start(by('legend'));
  details.start({ panel: by('panel'), tabs: by('tabs') }, select);
  vmtable.start({ table: by('vms'), form: by('settings') }, notice);
  memorybar.start(by('memory'));
  timeline.start({ canvas: by('timeline'), decision: by('decision') }, look);
  lesson.start(by('school'));
  pointer(by('pages'));
  keys();
  by('play').onclick = toggle;
  by('step').onclick = () => { look(null); control('step', 1); };
  by('speed').onchange = event => control('speed', event.target.value);
  by('mode').onchange = event => mode(event.target.value);
  by('palette').onclick = () => palette(otherPalette());
  by('theme').onclick = () => theme(document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark');
  by('lesson').onclick = () => lesson.open();
  by('save-png').onclick = () => save('png');
  by('save-svg').onclick = () => save('svg');
  by('help').onclick = () => by('keys').showModal();
  by('find').onsubmit = event => { event.preventDefault(); pinned = true; find(by('address').value); };
  if (!webgl) notice('This browser has no WebGL2: the page map is drawn on a plain canvas.');
  store.on('frame', top);
  store.on('vm', () => { remember(); refreshRuns(); });
  store.on('live', () => { refreshRuns(); refreshEvents(); });
  let first = true;
  connect({
    onHello: hello => {
      document.title = `memvirt: ${hello.title}`;
      by('title').textContent = hello.title;
      by('controls').hidden = !hello.can.includes('play');
      store.greet(hello);
      ask('series').then(series => { store.series = [...series.slice(0, -1), ...store.series.slice(-1)]; }).catch(() => {});
    },
    onFrame: (header, parts, changed, bytes) => {
      store.receive(header, parts, changed);
      received.frames++;
      received.bytes += bytes;
      if (first) { first = false; setTimeout(recall, 50); }
    },
    onState: text => notice(text),
  });
}

const received = { frames: 0, bytes: 0 };
globalThis.memvirt = { store, pagemap, arrows, find, select, look, received }; // for tests, and for the curious
begin();
