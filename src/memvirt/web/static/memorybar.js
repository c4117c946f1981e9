// SPDX-License-Identifier: Apache-2.0
// Where machine memory is: one bar, with the borders of the host's states on it.

import { frameColours } from './colors.js';
import { store } from './store.js';
import { svg } from './svg.js';

const MIB = 256;
let place;

export function start(element) {
  place = element;
  store.on('frame', draw);
  new ResizeObserver(draw).observe(place);
}

/** [name, frames, colour] of each part, in order. */
export function parts() {
  const host = store.header.host, colours = frameColours();
  const sum = name => store.vms.reduce((total, vm) => total + (vm[name] ?? 0), 0);
  const caches = host.zip_frames, tables = Math.max(host.overhead - caches, 0);
  return [
    ['guest, private', Math.max(host.guest - host.common, 0), colours[1]], ['guest, shared', host.common, colours[2]],
    ['tables and reserves', tables, colours[3]], ['compressed', caches, colours[7]],
    ['VMkernel', host.vmkernel, colours[6]], ['free', host.free, colours[0]],
  ].map(([name, frames, colour]) => ({ name, frames, colour, saved: sum('shared') }));
}

export function draw() {
  if (!store.header?.host || !place.clientWidth) return;
  const width = place.clientWidth, total = store.header.host.total, scale = width / total, made = [];
  const tall = innerWidth >= 2400, top = tall ? 22 : 14, high = tall ? 22 : 15, height = tall ? 68 : 49;
  let x = 0, text = 2;
  const letter = tall ? 9.5 : 6.6;
  for (const { name, frames, colour } of parts()) {
    const w = frames * scale, label = `${name} ${(frames / MIB).toFixed(1)} MB`;
    made.push(svg('rect', { x, y: top, width: Math.max(w, 0), height: high, fill: colour }, svg('title', {}, label)));
    x += w;
    if (frames <= 0 && name !== 'free') continue;
    made.push(svg('rect', { x: text, y: top + high + 6, width: 8, height: 8, fill: colour, rx: 2, stroke: 'var(--line)' }),
      svg('text', { x: text + 12, y: top + high + 14 }, label));
    text += 30 + label.length * letter;
  }
  // Names of the borders stand above the bar, or below it where the one before leaves no room.
  let above = width + 99, below = width + 99;
  for (const [name, frames] of Object.entries(store.header.marks ?? {}).sort((a, b) => a[1] - b[1])) {
    const at = width - frames * scale, wide = name.length * letter + 8;
    if (at < 0) continue;
    made.push(svg('line', { x1: at, x2: at, y1: top - 3, y2: top + high + 3, stroke: 'var(--text)', 'stroke-dasharray': '2 2' }, svg('title', {}, `below ${(frames / MIB).toFixed(1)} MB free: ${name}`)));
    if (above - at >= wide || above > width) { made.push(svg('text', { class: 'quiet', x: at - 3, y: top - 4, 'text-anchor': 'end' }, name)); above = at - wide + 8; }
    else if (below - at >= 0 && at - wide > text) { made.push(svg('text', { class: 'quiet', x: at - 3, y: top + high + 14, 'text-anchor': 'end' }, name)); below = at - wide + 8; }
  }
  place.replaceChildren(svg('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': 'machine memory by use' }, ...made));
}
