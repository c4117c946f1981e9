// SPDX-License-Identifier: Apache-2.0
// Puts the page together: the top, time, colours, and who listens to whom.

import * as arrows from './arrows.js';
import { otherPalette, paletteName, usePalette } from './colors.js';
import { ask, command, connect, frameAt, wish } from './connection.js';
import * as details from './details.js';
import { inquire, select, start as startInquiry } from './inquiry.js';
import { introduce } from './introduction.js';
import * as keys from './keys.js';
import * as legend from './legend.js';
import * as lesson from './lesson.js';
import * as memorybar from './memorybar.js';
import * as pagemap from './pagemap.js';
import * as place from './place.js';
import * as pointer from './pointer.js';
import { asPng, asSvg, download } from './save.js';
import { store } from './store.js';
import { html } from './svg.js';
import * as timeline from './timeline.js';
import * as vmtable from './vmtable.js';

const by = id => document.getElementById(id);
const SPEEDS = [[2, '2 rounds/s'], [5, '5'], [20, '20'], [60, '60'], [0, 'as fast as it goes']];
const MODES = [['state', 'state'], ['owner', 'owner'], ['activity', 'activity'], ['salt', 'salt']];

// Notices ---------------------------------------------------------------------------------------

const notices = new Map(); // what is wrong, by what it is about

function notice(text, about = 'command') {
  notices.set(about, text);
  const said = [...notices.values()].filter(Boolean).join('  ·  ');
  by('notice').textContent = said;
  by('notice').hidden = !said;
}

const found = text => { by('found').textContent = text; };

// Time --------------------------------------------------------------------------------------------

let looking = 0;

async function look(number) {
  const mine = ++looking;
  if (number !== null) {
    try {
      const past = await frameAt(number);
      if (mine !== looking) return;
      store.look(past);
    } catch (error) { notice(error.message, 'time'); return; }
  } else if (store.past) store.look(null);
  notice('', 'time');
  place.remember();
}

const control = (name, value) => command('control', { command: name, value: value ?? 0 }).catch(error => notice(error.message));
const one = () => { look(null); control('step', 1); };
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
  const over = !store.past && header.done && store.hello.can.includes('play');
  by('figures').replaceChildren(
    store.past ? bold('looking back · ') : '', over ? bold('all VMs have ended: drag time back, or press [ · ') : '',
    bold(`${running.length}`), running.length === 1 ? ' VM, ' : ' VMs, ', bold(`${(configured / 256).toFixed(0)} MB`), ' on ', bold(`${(host.total / 256).toFixed(0)} MB`),
    ', ', bold(`${(configured / host.total).toFixed(2)} x`), html('span', { class: 'wide' }, ' overcommitted'), ' · ', bold(`${(host.time_ns / 1e9).toFixed(2)} s`), html('span', { class: 'wide' }, ' virtual'),
    html('span', { class: 'wide' }, ` · wall ${header.wall?.toFixed(1) ?? '–'} s`), ` · round ${header.round}`);
  by('figures').title = by('figures').textContent;
  const live = store.live.header;
  by('play').textContent = live.playing ? '❚❚ pause' : '▶ run';
  by('play').setAttribute('aria-pressed', Boolean(live.playing));
  by('speed').value = String(live.speed ?? 0);
  failed(live.error);
}

const failed = error => notice(error ? `the host cannot go on: ${error}` : '', 'host');

function theme(name) {
  document.documentElement.dataset.theme = name;
  try { localStorage.setItem('memvirt-theme', name); } catch { /* private browsing */ }
  store.changed('frame', { changed: [] });
}

const otherTheme = () => theme(document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark');

function palette(name) {
  usePalette(name);
  by('palette').setAttribute('aria-pressed', name === 'distinct');
  try { localStorage.setItem('memvirt-palette', name); } catch { /* private browsing */ }
  store.changed('frame', { changed: [] });
}

function mode(name) {
  if (!MODES.some(([known]) => known === name)) return;
  store.mode = name;
  wish('activity', name === 'activity');
  by('mode').value = name;
  place.remember();
  store.changed('frame', { changed: [] });
}

const nextMode = () => mode(MODES[(MODES.findIndex(([name]) => name === store.mode) + 1) % MODES.length][0]);

function release() {
  pointer.pin(false);
  select(null);
  pagemap.redraw();
}

// Files -----------------------------------------------------------------------------------------------

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
  vmtable.start({ table: by('vms'), form: by('settings'), choice: by('choice'), columns: by('columns') }, notice);
  memorybar.start(by('memory'));
  timeline.start({ canvas: by('timeline'), decision: by('decision') }, look);
  lesson.start(by('school'));
  startInquiry();
  pointer.start({ canvas: by('pages'), tip: by('tip') });
  keys.start({
    toggle, look, save, speed, step: one, columns: vmtable.choose,
    find: () => by('address').focus(), mode: nextMode, release,
    palette: () => palette(otherPalette()), theme: otherTheme,
  });
  by('play').onclick = toggle;
  by('step').onclick = one;
  by('speed').onchange = event => control('speed', event.target.value);
  by('mode').onchange = event => mode(event.target.value);
  by('palette').onclick = () => palette(otherPalette());
  by('theme').onclick = otherTheme;
  by('lesson').onclick = () => lesson.open();
  by('save-png').onclick = () => save('png');
  by('save-svg').onclick = () => save('svg');
  by('help').onclick = () => by('keys').showModal();
  by('find').onsubmit = event => { event.preventDefault(); pointer.pin(true); place.find(by('address').value, found); };
  by('plain').hidden = webgl;
  by('notice').onclick = () => { notices.clear(); notice(''); };
  store.on('frame', top);
  for (const what of ['vm', 'selected', 'columns']) store.on(what, place.remember);
  let first = true;
  connect({
    onHello: hello => {
      document.title = `memvirt: ${hello.title}`;
      by('title').textContent = hello.title;
      by('controls').hidden = !hello.can.includes('play');
      store.greet(hello);
      failed(hello.error);
      ask('series').then(series => { store.series = [...series.slice(0, -1), ...store.series.slice(-1)]; }).catch(() => {});
    },
    onFrame: (header, parts, changed, bytes) => {
      store.receive(header, parts, changed);
      received.frames++;
      received.bytes += bytes;
      if (first) { first = false; place.recall({ mode, look, found }).then(introduce); }
    },
    onState: text => notice(text, 'connection'),
  });
}

const received = { frames: 0, bytes: 0 };
globalThis.memvirt = { store, pagemap, arrows, select, inquire, look, received }; // for tests, and for the curious
begin();
