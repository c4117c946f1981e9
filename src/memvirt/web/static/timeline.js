// SPDX-License-Identifier: Apache-2.0
// Time: what the chosen VM (or the host) took, stacked; its target as a line; decisions as marks.
// Dragging looks back; the right end is now.

import { guestColours } from './colors.js';
import { store } from './store.js';
import { counted } from './words.js';

const MIB = 256, LEFT = 66, RIGHT = 10, TOP = 6, BOTTOM = 16;
const STATES = ['#16794c', '#4d7c0f', '#a16207', '#c2410c', '#b91c1c'];
const MARKS = { balloon: 3, compress: 4, swap: 5, share: 2 };
let canvas, decision, look, hover = null, dragging = false, scheduled = false;

export function start(elements, onLook) {
  ({ canvas, decision } = elements);
  look = onLook;
  for (const what of ['live', 'frame', 'vm', 'events']) store.on(what, redraw);
  for (const what of ['frame', 'events']) store.on(what, say);
  new ResizeObserver(redraw).observe(canvas);
  canvas.addEventListener('pointerdown', event => { dragging = true; canvas.setPointerCapture(event.pointerId); move(event); });
  canvas.addEventListener('pointermove', move);
  canvas.addEventListener('pointerup', () => { dragging = false; });
  canvas.addEventListener('pointerleave', () => { hover = null; say(); redraw(); });
}

const span = () => { const series = store.series; return [series[0].time_ns, Math.max(series.at(-1).time_ns, series[0].time_ns + 1)]; };

function xOf(time) { const [from, to] = span(); return LEFT + (time - from) / (to - from) * (canvas.clientWidth - LEFT - RIGHT); }

function move(event) {
  if (!store.series.length) return;
  const [from, to] = span(), width = canvas.clientWidth - LEFT - RIGHT;
  const part = Math.max(0, Math.min((event.offsetX - LEFT) / width, 1));
  hover = from + part * (to - from);
  if (dragging) seek(hover, event.offsetX >= canvas.clientWidth - RIGHT - 3);
  say();
  redraw();
}

/** Look at the newest moment not after `time`; the last one is live again. */
export function seek(time, live = false) {
  const series = store.series;
  let low = 0, high = series.length - 1;
  while (low < high) { const middle = (low + high + 1) >> 1; if (series[middle].time_ns <= time) low = middle; else high = middle - 1; }
  look(live || low === series.length - 1 ? null : series[low].number);
}

/** So many frames back (negative) or on from the moment that is looked at. */
export function step(way) {
  const series = store.series, number = store.header?.number, now = series.findIndex(point => point.number >= number);
  if (now < 0) return;
  const at = Math.max(now + way, 0);
  look(at >= series.length - 1 ? null : series[at].number);
}

/** The decision under the pointer, of the chosen VM if it has one there; without a pointer the last one. */
function say() {
  const at = hover ?? store.header?.host.time_ns;
  if (at === undefined || !store.series.length) return;
  const [from, to] = span(), near = (to - from) / Math.max(canvas.clientWidth, 1) * 6, name = store.vms[store.position(store.vm)]?.name;
  const marked = event => event.vm === name && event.mechanism in MARKS && Math.abs(event.time_ns - at) <= near;
  const found = (hover !== null && store.events.findLast(marked)) || store.events.findLast(event => event.time_ns <= at);
  const pages = found?.pages ? ` ${counted(found.pages, 'page')}` : '';
  decision.textContent = `${(at / 1e9).toFixed(2)} s` + (found ? `   ${found.mechanism} ${found.vm}${pages}: ${found.reason}` : '');
}

function redraw() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => { scheduled = false; draw(); });
}

/** Stacks of a point: consumed, balloon, compressed, swapped; and the target. In pages. */
export function stacks(point, vm = store.vm) {
  const one = point.vms.find(row => row[0] === vm);
  return one ? { parts: [one[1], one[2], one[3], one[4]], target: one[5] } : { parts: [0, 0, 0, 0], target: 0 };
}

function draw() {
  const width = canvas.clientWidth, height = canvas.clientHeight, ratio = devicePixelRatio || 1;
  if (!width || !height) return;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const context = canvas.getContext('2d'), style = getComputedStyle(document.documentElement);
  const colour = name => style.getPropertyValue(name).trim();
  context.scale(ratio, ratio);
  context.font = `${innerWidth >= 2400 ? 16 : 11}px system-ui, sans-serif`;
  if (store.series.length < 2 || !store.header) return; // the series may be there before the first frame
  const points = thin(store.series, width), base = height - BOTTOM, room = base - TOP - 5;
  const stacked = points.map(point => stacks(point));
  const most = Math.max(...stacked.map(({ parts, target }) => Math.max(parts.reduce((a, b) => a + b), target)), 1) * 1.06;
  const y = pages => base - pages / most * room;
  const palette = guestColours(), colours = [palette[1], palette[3], palette[4], palette[5]];
  const below = points.map(() => 0);
  for (let part = 0; part < 4; part++) {
    context.fillStyle = colours[part];
    context.beginPath();
    points.forEach((point, i) => { const x = xOf(point.time_ns), top = y(below[i] + stacked[i].parts[part]); if (i) context.lineTo(x, top); else context.moveTo(x, top); });
    for (let i = points.length - 1; i >= 0; i--) context.lineTo(xOf(points[i].time_ns), y(below[i]));
    context.fill();
    stacked.forEach(({ parts }, i) => { below[i] += parts[part]; });
  }
  context.strokeStyle = colour('--text');
  context.lineWidth = 1.4;
  context.beginPath();
  points.forEach((point, i) => { const x = xOf(point.time_ns), at = y(stacked[i].target); if (i) context.lineTo(x, at); else context.moveTo(x, at); });
  context.stroke();
  points.forEach((point, i) => { const x = xOf(point.time_ns), next = i + 1 < points.length ? xOf(points[i + 1].time_ns) : x + 2; context.fillStyle = STATES[point.state]; context.fillRect(x, base + 1, next - x + .5, 3); });
  marks(context, palette, base);
  context.fillStyle = colour('--quiet');
  const name = store.vms[store.position(store.vm)]?.name ?? '';
  context.fillText(`${(most / 1.06 / MIB).toFixed(0)} MB`, 6, TOP + 10);
  context.fillText(name.slice(0, 9), 6, TOP + 26);
  context.fillText('0', 6, base);
  const [from, to] = span();
  context.fillText(`${(from / 1e9).toFixed(2)} s`, LEFT, height - 1);
  context.fillText(`${(to / 1e9).toFixed(2)} s`, width - RIGHT - 44, height - 1);
  cursor(context, colour('--accent'), store.header.host.time_ns, base, store.past ? 2.4 : 1);
  if (hover !== null) cursor(context, colour('--quiet'), hover, base, 1);
}

function marks(context, palette, base) {
  const [from] = span(), name = store.vms[store.position(store.vm)]?.name;
  for (const event of store.events) {
    const kind = MARKS[event.mechanism];
    if (kind === undefined || event.vm !== name || event.time_ns < from) continue;
    const x = xOf(event.time_ns);
    context.fillStyle = palette[kind];
    context.beginPath();
    context.moveTo(x, base - 1); context.lineTo(x - 3.5, base - 8); context.lineTo(x + 3.5, base - 8);
    context.fill();
    context.strokeStyle = '#0008';
    context.lineWidth = .6;
    context.stroke();
  }
}

function cursor(context, colour, time, base, width) {
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.beginPath();
  context.moveTo(xOf(time), TOP);
  context.lineTo(xOf(time), base + 4);
  context.stroke();
}

function thin(series, width) {
  const every = Math.max(Math.floor(series.length / width), 1);
  return every === 1 ? series : series.filter((_, i) => i % every === 0 || i === series.length - 1);
}
