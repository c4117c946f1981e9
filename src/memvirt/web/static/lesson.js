// SPDX-License-Identifier: Apache-2.0
// Teacher mode: a VM of 16 pages, boxes big enough to read, one step at a time. The server runs the
// real VMM; what is drawn is what its pmap and tables say after each step.

import { frameColours, guestColours } from './colors.js';
import { ask } from './connection.js';
import { html, svg } from './svg.js';

const WIDTH = 1140, HEIGHT = 400, ROWS = { virtual: 34, physical: 166, machine: 306 }, BOX = 46;
let dialog, scenes = [], at = 0, paging = 'shadow';

export function start(element) {
  dialog = element;
  dialog.addEventListener('keydown', event => {
    if (event.key === 'ArrowRight' || event.key === ' ') { event.preventDefault(); move(1); }
    if (event.key === 'ArrowLeft') { event.preventDefault(); move(-1); }
  });
}

export async function open() {
  dialog.showModal();
  await load(paging);
}

async function load(kind) {
  paging = kind;
  try { scenes = (await ask('lesson', { paging })).scenes; } catch (error) { scenes = []; dialog.replaceChildren(html('p', {}, error.message), closing()); return; }
  at = 0;
  draw();
}

function move(way) { at = Math.max(0, Math.min(at + way, scenes.length - 1)); draw(); }

function place(space, page) {
  const count = space === 'machine' ? scenes[at].frames.length : scenes[at][space].length;
  const step = Math.min((WIDTH - 130) / count, BOX + 12);
  return { x: 124 + page * step, y: ROWS[space], w: Math.min(step - 5, BOX), h: BOX };
}

function box(space, page, { label, note, colour, now }) {
  const { x, y, w, h } = place(space, page);
  return svg('g', { 'data-box': `${space}:${page}` },
    svg('rect', { x, y, width: w, height: h, rx: 4, fill: colour, stroke: now ? 'var(--hover)' : 'var(--line)', 'stroke-width': now ? 3 : 1 }),
    svg('text', { x: x + w / 2, y: y - 4, 'text-anchor': 'middle', class: 'quiet', 'font-size': 10 }, label),
    note ? svg('text', { x: x + w / 2, y: y + h / 2 + 4, 'text-anchor': 'middle', 'font-size': 10 }, note) : null);
}

function arrow({ kind, from, to }) {
  const a = place(...from), b = place(...to), [x1, y1, x2, y2] = [a.x + a.w / 2, a.y + a.h, b.x + b.w / 2, b.y - 15];
  const bend = kind === 'shadow' || kind === 'nested' ? 34 : 0, middle = (y2 - y1) / 2;
  return svg('path', { class: `arrow ${kind}`, 'marker-end': `url(#lesson-${kind === 'nested' ? 'shadow' : kind})`, d: `M${x1} ${y1}C${x1 + bend} ${y1 + middle} ${x2 + bend} ${y2 - middle} ${x2} ${y2}` });
}

function draw() {
  const scene = scenes[at], guest = guestColours(), frame = frameColours();
  const heads = svg('defs', {}, ...['guest', 'pmap', 'shadow'].map(kind => svg('marker',
    { id: `lesson-${kind}`, viewBox: '0 0 8 8', refX: 5, refY: 4, markerWidth: 7, markerHeight: 7, orient: 'auto' }, svg('path', { class: `head ${kind}`, d: 'M0 0L8 4L0 8Z' }))));
  const names = [['virtual', 'Guest virtual'], ['physical', 'Guest physical'], ['machine', 'Machine']].map(([space, name]) => svg('text', { x: 4, y: ROWS[space] + 28, 'font-weight': 650 }, name));
  const picture = svg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img', 'aria-label': scene.title }, heads, ...names,
    ...scene.virtual.map((one, i) => box('virtual', i, { label: one.address, note: one.note, colour: guest[0], now: one.now })),
    ...scene.physical.map((one, i) => box('physical', i, { label: one.ppn, note: one.note, colour: guest[one.state], now: one.now })),
    ...scene.frames.map((one, i) => box('machine', i, { label: one.mpn.slice(2), note: one.note, colour: frame[one.state], now: one.now })),
    ...scene.arrows.map(arrow));
  const kind = name => html('button', { 'aria-pressed': paging === name, onclick: () => load(name) }, name);
  dialog.replaceChildren(
    html('h2', {}, `${at + 1} of ${scenes.length}: ${scene.title}`), picture, html('p', { class: 'say' }, scene.say),
    html('p', {}, html('button', { onclick: () => move(-1), disabled: at === 0 }, '← back'), ' ', html('button', { onclick: () => move(1), disabled: at === scenes.length - 1, autofocus: true }, 'next →'),
      '   ', kind('shadow'), ' ', kind('nested'), '   ', html('span', { class: 'quiet' }, 'solid: the guest’s tables and the pmap · dashed: what the processor walks')),
    closing());
}

function closing() { return html('form', { method: 'dialog' }, html('button', {}, 'close')); }
