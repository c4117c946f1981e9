// SPDX-License-Identifier: Apache-2.0
// The right side: the walk of what is selected as a ladder, the life of the page, its bytes, a console.

import { consolePanel, screenPanel } from './console.js';
import { store } from './store.js';
import { html } from './svg.js';
import { counted } from './words.js';

const TABS = { walk: 'walk', life: 'life', bytes: 'bytes', console: 'console', screen: 'screen', decisions: 'decisions' };
const WIDE = ['console', 'screen']; // 80 columns need room
let panel, tabs, current = 'walk', select;

export function start(elements, onSelect) {
  ({ panel, tabs } = elements);
  select = onSelect;
  for (const [key, name] of Object.entries(TABS)) {
    tabs.append(html('button', { role: 'tab', id: `tab-${key}`, onclick: () => show(key) }, name));
  }
  for (const what of ['selection', 'answers', 'hello', 'vm']) store.on(what, draw);
  store.on('console', ({ id }) => { if (current === 'console' && id === store.vm) draw(); });
  store.on('frame', () => { if (current === 'console' || (current === 'screen' && screenNow() !== drawn)) draw(); });
  store.on('events', () => { if (current === 'decisions') draw(); });
  show('walk');
}

/** The tabs in their order, and the one that is shown. */
export const names = () => Object.keys(TABS);
export const shown = () => current;

export function show(tab) {
  current = tab;
  for (const button of tabs.children) button.setAttribute('aria-selected', button.id === `tab-${tab}`);
  drawn = '';
  panel.scrollTop = 0;
  panel.closest('main').classList.toggle('columns80', WIDE.includes(tab));
  draw();
  store.changed('tab');
}

let drawn = '';

/** What is shown may be asked for again and be the same: then nothing is made anew under the pointer. */
function draw() {
  if (current === 'console') { drawConsole(); return; }
  if (current === 'screen') { drawScreen(); return; }
  const draws = { walk, life, bytes, decisions };
  if (current === 'walk' || current === 'life' || current === 'bytes') {
    const now = JSON.stringify([current, store.selection, store.answers, store.past?.header.number]);
    if (now === drawn) return;
    drawn = now;
  }
  panel.replaceChildren(...draws[current]());
}

/** Which screen there is now: parts are changed in place, so it is their bytes that tell. */
function screenNow() {
  const part = store.parts.get(`screen:${store.vm}`), vm = store.vms[store.position(store.vm)];
  return `${store.vm} ${Boolean(store.past)} ${store.live.header?.playing} ${vm?.outcome} ${vm?.condition} ${part ? part.join() : ''}`;
}

/** The console's elements stay: who types keeps the focus, who reads further up is not moved. */
function drawConsole() {
  const stay = panel.scrollTop + panel.clientHeight >= panel.scrollHeight - 8, element = consolePanel();
  const anew = panel.firstChild !== element;
  if (anew) panel.replaceChildren(element);
  if (stay || anew) panel.scrollTop = panel.scrollHeight;
}

function drawScreen() {
  drawn = screenNow();
  const element = screenPanel();
  if (panel.firstChild !== element || panel.childElementCount > 1) panel.replaceChildren(element);
}

const hint = text => [html('p', { class: 'quiet' }, text)];
const bits = flags => html('span', { class: 'bits' }, ...flags.map(flag => html('span', {}, flag)));

function go(label, selection) {
  return html('button', { onclick: () => select(selection), title: 'go there' }, label);
}

function walk() {
  const { map, page, frame, error } = store.answers;
  if (error) return hint(error);
  if (frame && store.selection.kind === 'mpn') return frameWalk(frame);
  if (!map && !page) return hint('Point at a page to see its mappings; click to see how an address gets to its frame.');
  const rows = map ? mapRows(map) : [];
  if (page && !map) rows.push(html('p', {}, `PPN 0x${page.ppn.toString(16)}: ${page.state}${page.mpn === null ? '' : `, in frame MPN 0x${page.mpn.toString(16)}`}; no guest virtual address ${store.past ? 'was known to lead to it' : 'leads to it now'}.`));
  if (page?.addresses.length) {
    rows.push(html('h2', {}, 'Guest virtual addresses of this page'), html('p', {},
      ...page.addresses.slice(0, 16).map(gva => go(gva, { kind: 'gva', vm: page.vm, gva }))));
  }
  return rows;
}

/** A line that says whose entries come next. */
const part = (kind, text) => html('li', { class: `part ${kind}` }, text);

const SECOND = {
  shadow: 'The shadow tables, which the hypervisor makes of both, and the processor walks:',
  nested: 'The nested tables, which the processor walks after the guest’s:',
};

function mapRows(map) {
  const vm = store.selection.vm, steps = [part('guest', 'A program in the guest uses the address:')];
  steps.push(html('li', { class: 'guest' }, html('b', {}, `gVA ${map.gva}`), html('span', { class: 'where' }, map.guest_mode ? `  ${map.guest_mode} guest` : '')));
  if (map.guest.length) steps.push(part('guest', 'The guest’s own page tables lead it to:'));
  for (const step of map.guest) {
    const target = step.points_to === null ? null : Number(BigInt(step.points_to) >> 12n);
    steps.push(html('li', { class: 'guest' }, html('b', {}, step.entry_name), ' ', html('code', {}, step.value), ' ', bits(step.flags),
      html('div', { class: 'where' }, `at gPA ${step.address} `, go('table', { kind: 'ppn', vm, ppn: Number(BigInt(step.address) >> 12n) }),
        target === null ? null : go('→', { kind: 'ppn', vm, ppn: target }))));
  }
  if (map.ppn !== null) {
    const where = map.mpn !== null ? `frame MPN ${map.mpn} ` : map.slot !== null ? `slot ${Number(map.slot)} ` : '';
    steps.push(part('pmap', 'The guest takes this for its memory; the hypervisor’s pmap knows where it is:'), html('li', { class: 'pmap' }, html('b', {}, `PPN ${map.ppn}`), ` ${map.state ?? 'no memory'} `, bits(map.pmap_flags),
      html('div', { class: 'where' }, `pmap: ${where}`, map.mpn === null ? null : go('frame', { kind: 'mpn', mpn: Number(map.mpn) }))));
  }
  if (map.second.length) steps.push(part(map.second[0].table, SECOND[map.second[0].table] ?? ''));
  for (const step of map.second) {
    steps.push(html('li', { class: step.table }, html('b', {}, `${step.table} ${step.entry_name}`), ' ', html('code', {}, step.value), ' ', bits(step.flags),
      html('div', { class: 'where' }, `at mA ${step.address} `, go('table', { kind: 'mpn', mpn: Number(BigInt(step.address) >> 12n) }), ' ', step.points_to === null ? 'absent: filled at the next access' : null)));
  }
  if (map.machine_address !== null) steps.push(part('pmap', 'In the host’s real memory it is:'), html('li', { class: 'pmap' }, html('b', {}, `mA ${map.machine_address}`)));
  const made = [html('ul', { class: 'ladder' }, ...steps)];
  if (map.note) made.push(html('p', { class: 'quiet' }, map.note));
  return made;
}

function frameWalk(frame) {
  const made = [html('h2', {}, `Frame MPN 0x${frame.mpn.toString(16)}`)];
  if (!frame.total) return [...made, ...hint('No guest page is in this frame.')];
  made.push(html('p', {}, frame.total === 1 ? 'backs one page:' : `backs ${counted(frame.total, 'page')}, copy-on-write:`));
  const name = id => store.vms[store.position(id)]?.name ?? `VM ${id}`;
  made.push(html('ul', { class: 'ladder' }, ...frame.mappings.slice(0, 200).map(one => html('li', { class: 'pmap' },
    html('b', {}, name(one.vm)), ` PPN 0x${one.ppn.toString(16)} `, go('→', { kind: 'ppn', vm: one.vm, ppn: one.ppn }),
    html('div', { class: 'where' }, one.addresses.slice(0, 4).join('  ') || 'no guest virtual address')))));
  return made;
}

function life() {
  const page = store.answers.page;
  if (store.answers.error) return hint(store.answers.error);
  if (!page) return hint('Select a page of a VM.');
  const rows = (store.answers.life ?? []).map(change => html('li', { class: 'pmap' }, html('b', {}, change.state),
    html('div', { class: 'where' }, `${(change.time_ns / 1e9).toFixed(3)} s, round ${change.round}${reason(page.vm, change)}`)));
  return [html('h2', {}, `PPN 0x${page.ppn.toString(16)}, ${store.past ? 'up to this moment' : 'since this page was opened'}`), html('ul', { class: 'ladder' }, ...rows),
    html('p', { class: 'quiet' }, 'Reasons are the VMkernel’s decisions for this VM in the same moment.')];
}

const MECHANISM = { shared: 'share', ballooned: 'balloon', compressed: 'compress', swapped: 'swap', large: 'large page' };

function reason(vm, change) {
  const name = store.vms[store.position(vm)]?.name, wanted = MECHANISM[change.state];
  const why = wanted && store.events.findLast(event => event.vm === name && event.mechanism === wanted && event.time_ns <= change.time_ns);
  return why ? `: ${why.reason}` : '';
}

function bytes() {
  const content = store.answers.page?.bytes;
  if (!content) return hint(store.answers.error ?? store.answers.page?.unavailable ?? 'Select a page of a VM.');
  const lines = [];
  for (let at = 0; at < content.length; at += 32) {
    const row = content.slice(at, at + 32), pairs = row.match(/../g);
    const text = pairs.map(pair => { const c = parseInt(pair, 16); return c > 31 && c < 127 ? String.fromCharCode(c) : '.'; }).join('');
    lines.push(`${(at / 2).toString(16).padStart(3, '0')}  ${pairs.join(' ')}  ${text}`);
  }
  return [html('pre', { class: 'bytes' }, lines.join('\n'))];
}

function decisions() {
  if (!store.events.length) return hint('The VMkernel has decided nothing yet.');
  return [html('ul', { class: 'ladder' }, ...store.events.slice(-300).reverse().map(event => html('li', { class: 'pmap' },
    html('b', {}, event.mechanism), ` ${event.vm}${event.pages ? ` ${counted(event.pages, 'page')}` : ''}`,
    html('div', { class: 'where' }, `${(event.time_ns / 1e9).toFixed(2)} s  ${event.reason}`))))];
}
