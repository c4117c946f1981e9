// SPDX-License-Identifier: Apache-2.0
// What is selected, and the questions about it. Answers are asked for again while the host goes on:
// what is drawn is true now, or it is not drawn.

import * as details from './details.js';
import { ask } from './connection.js';
import * as pagemap from './pagemap.js';
import { store } from './store.js';

const AGAIN = 500, LIFE_AGAIN = 2000; // milliseconds between two askings for the same thing

let turn = 0, hovering = false;

const canAsk = () => Boolean(store.hello?.can.includes('ask'));

/** Why nothing can be asked about a selection, or ''. */
function unanswerable(selection) {
  if (!canAsk()) return 'A record has how many pages are in each state, not which: there is nothing to walk.';
  if (store.past) return 'This moment is over: page states are kept, walks are not. Home is now again.';
  const running = store.vms.filter(vm => !vm.outcome);
  if (selection.kind === 'mpn') return running.length ? '' : 'All VMs have ended: no frame backs a page.';
  const vm = store.vms[store.position(selection.vm)];
  return vm?.outcome ? `${vm.name} has ended: ${vm.outcome}` : '';
}

/** Select a page or an address, and ask what is known of it. A pointer that only hovers asks less. */
export async function select(selection, { hover = false } = {}) {
  hovering = hover;
  store.select(selection, { keep: hover });
  await inquire();
}

/** Ask (again) about what is selected. */
export async function inquire() {
  const mine = ++turn, selection = store.selection;
  if (!selection) return;
  let answers = { error: unanswerable(selection) };
  if (!answers.error) {
    try { answers = await questions(selection, hovering); } catch (error) { answers = { error: error.message }; }
  }
  if (mine !== turn) return;
  store.answers = answers;
  store.changed('answers');
}

async function questions(selection, hover) {
  if (selection.kind === 'mpn') return { frame: await ask('frame', { mpn: selection.mpn }) };
  let gva = selection.gva, page;
  const pageOf = ppn => ask('page', { vm: selection.vm, ppn });
  if (selection.kind === 'ppn') {
    page = await pageOf(selection.ppn);
    const inView = selection.vm === store.vm && page.addresses.find(address => pagemap.virtualIndex(address) !== null);
    gva = inView || page.addresses[0];
  }
  const map = gva === undefined ? null : await ask('map', { vm: selection.vm, gva });
  if (!page && !hover && map?.ppn != null && map.state) page = await pageOf(Number(map.ppn));
  const frame = page?.mpn != null && page.state === 'shared' ? await ask('frame', { mpn: page.mpn }) : null;
  const life = page && details.shown() === 'life' ? (await ask('life', { vm: page.vm, ppn: page.ppn })).life : null;
  return { map, page, frame, life };
}

/** A question that is asked at most every so often, and once more if it was wanted meanwhile. */
function throttled(every, question) {
  let busy = false, wanted = false;
  return async function again() {
    if (busy) { wanted = true; return; }
    busy = true;
    try { await question(); } catch { /* the next frame asks again */ }
    setTimeout(() => { busy = false; if (wanted) { wanted = false; again(); } }, every());
  };
}

/** What the chosen VM's tables map. */
const refreshRuns = throttled(() => AGAIN, async () => {
  const vm = store.vms[store.position(store.vm)];
  if (!vm || store.past || !canAsk()) return;
  if (vm.outcome) {
    if (store.runs.runs.length) { store.runs = { vm: vm.vm_id, runs: [], complete: true }; store.changed('runs'); }
    return;
  }
  const answer = await ask('virtual', { vm: vm.vm_id });
  if (answer.vm === store.vm) { store.runs = answer; store.changed('runs'); }
});

let eventsSeen = 0;

const refreshEvents = throttled(() => AGAIN, async () => {
  const upTo = store.live.header.events;
  if (upTo === eventsSeen) return;
  const news = await ask('events', { since: eventsSeen });
  eventsSeen = upTo;
  store.events.push(...news);
  store.events.splice(0, store.events.length - 20000);
  store.changed('events');
});

const refreshAnswers = throttled(() => (details.shown() === 'life' ? LIFE_AGAIN : AGAIN), inquire);

export function start() {
  store.on('vm', refreshRuns);
  store.on('live', () => { refreshRuns(); refreshEvents(); if (!store.past && store.selection) refreshAnswers(); });
  store.on('tab', inquire);
  store.on('looked', () => { refreshRuns(); inquire(); });
}
