// SPDX-License-Identifier: Apache-2.0
// What the colours of the strips mean, beside the heading of guest-physical memory.

import { activityColour, guestColours, useColours, vmColour } from './colors.js';
import { USES, lanes, observed, onLayout, ownerGroups } from './pagemap.js';
import { store } from './store.js';
import { html } from './svg.js';

const RARE = { large: 'large', stored: 'stored' }; // classes that many hosts have no page of
let list, drawn = '';

export function start(element) {
  list = element;
  onLayout(draw);
}

/** [name, colour] of everything that can be seen in this mode. */
export function entries() {
  if (store.mode === 'owner') return store.vms.map((vm, position) => [vm.name, vmColour(position)]);
  if (store.mode === 'activity' && observed()) { const colours = useColours(); return [5, 4, 3, 2, 1, 0].map(at => [USES[at], colours[at]]); }
  if (store.mode === 'activity') return [['of the whole VM, as sampled:'], ['idle', activityColour(0)], ['half active', activityColour(.5)], ['active', activityColour(1)]];
  if (store.mode === 'salt') return ownerGroups().map((group, at) => [group.startsWith('alone ') ? 'shares with itself only' : `group ${group}`, vmColour(at)]);
  const colours = guestColours(), any = name => !(name in RARE) || store.vms.some(vm => vm[RARE[name]] > 0);
  return (store.hello?.guest_classes ?? []).map((name, number) => [name, colours[number]]).filter(([name]) => any(name));
}

function draw() {
  const first = lanes.physical.values().next().value, now = entries().slice(0, 9);
  if (first) list.style.top = `${first.y - 19}px`;
  if (JSON.stringify(now) === drawn) return;
  drawn = JSON.stringify(now);
  list.replaceChildren(...now.map(([name, colour]) => {
    if (!colour) return html('li', {}, name);
    const box = html('i');
    box.style.background = colour;
    return html('li', {}, box, name.length > 24 ? `${name.slice(0, 23)}…` : name);
  }));
}
