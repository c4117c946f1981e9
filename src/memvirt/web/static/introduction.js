// SPDX-License-Identifier: Apache-2.0
// Who opens the page sees the document's picture at once: an address of the chosen VM, with its
// arrows and its walk, until the pointer or the keyboard chooses something else.

import { select } from './inquiry.js';
import { store } from './store.js';

const PARTS = [.5, .35, .65, .2, .8, .05, .95]; // of the row: the first whose entries are all there is shown

/** Show one mapping as soon as there is one, if nothing has been selected. */
export function introduce() {
  let done = false, mine = false;
  const settle = async () => {
    if (done) return;
    done = true;
    for (const example of store.selection ? [] : examples()) {
      mine = true;
      const asked = select(example, { hover: true });
      mine = false;
      await asked;
      if (store.selection !== example || store.answers.map?.second.at(-1)?.points_to) return;
    }
    done = Boolean(store.selection);
  };
  store.on('runs', settle);
  store.on('selection', () => { if (!mine) done = true; });
  settle();
}

/** Some addresses in the longest row of pages that are in memory, of a program if there is one; or none. */
function examples() {
  const { vm, runs } = store.runs, classes = store.parts.get(`vm:${vm}`);
  if (vm !== store.vm || !classes) return [];
  const there = ['private', 'shared', 'large'].map(name => store.hello.guest_classes.indexOf(name));
  let best = null;
  for (const [start, ppn, pages, , rights] of runs) {
    let from = null;
    for (let page = 0; page <= pages; page++) {
      const inside = page < pages && there.includes(classes[ppn + page]);
      if (inside && from === null) from = page;
      if (!inside && from !== null) {
        const user = rights.includes('u'), longer = page - from > (best?.length ?? 0);
        if (user === (best?.user ?? false) ? longer : user) best = { length: page - from, start: BigInt(start), from, user };
        from = null;
      }
    }
  }
  if (!best) return [];
  return PARTS.map(part => ({ kind: 'gva', vm, gva: `0x${(best.start + (BigInt(best.from + Math.floor(best.length * part)) << 12n)).toString(16)}` }));
}
