// SPDX-License-Identifier: Apache-2.0
// What is selected, and the questions about it. Answers are asked for again while the host goes on:
// what is drawn is true now, or it is not drawn.

import * as details from './details.js';
import { ask } from './connection.js';
import { store } from './store.js';

const AGAIN = 1000, LIFE_AGAIN = 2000; // milliseconds between two askings for the same thing

let turn = 0, hovering = false;

const canAsk = () => Boolean(store.hello?.can.includes('ask'));

/** Why nothing can be asked about a selection, or ''. */
function unanswerable(selection) {
  if (!canAsk()) return 'A record has how many pages are in each state, not which: there is nothing to walk.';
  if (store.past) return '';
  const running = store.vms.filter(vm => !vm.outcome);
  if (selection.kind === 'mpn') return running.length ? '' : 'All VMs have ended: no frame backs a page.';
  const vm = store.vms[store.position(selection.vm)];
  return vm?.outcome ? `${vm.name} has ended: ${vm.outcome}` : '';
}

/** The moment that a question is about: none for now. */
const moment = () => (store.past ? { at: store.past.header.number } : {});

/** Select a page or an address, and ask what is known of it. A pointer that only hovers asks less. */
export async function select(selection, { hover = false } = {}) {
  hovering = hover;
  store.select(selection, { keep: hover });
  await inquire();
}

/** Ask (again) about what is selected; `more` is asked for with it. */
export async function inquire(more = {}) {
  const mine = ++turn, selection = store.selection;
  if (!selection) return;
  let answers = { error: unanswerable(selection) };
  if (!answers.error) {
    try { answers = await questions(selection, hovering, more); } catch (error) { answers = { error: error.message }; }
  }
  if (answers.virtual) mapped(answers.virtual, more.at);
  if (mine !== turn) return;
  store.answers = answers;
  store.changed('answers');
}

function questions(selection, hover, more) {
  const tab = details.shown(), wanted = { ...selection, ...moment(), ...more };
  if (hover) wanted.brief = 1;
  if (tab === 'bytes') wanted.bytes = 1;
  if (tab === 'life') wanted.life = 1;
  return ask('about', wanted);
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

/** What the chosen VM's tables map, or mapped. */
const refreshRuns = throttled(() => (store.past ? 100 : AGAIN), async () => {
  const vm = store.vms[store.position(store.vm)];
  if (!vm || !canAsk()) return;
  if (vm.outcome && !store.past) { empty(vm.vm_id, ''); return; }
  const asked = moment();
  let answer;
  try { answer = await ask('virtual', { vm: vm.vm_id, ...asked }); } catch (error) { if (store.past) empty(vm.vm_id, error.message); return; }
  mapped(answer, asked.at);
});

/** Take what the tables of a VM map, or mapped in frame `at`, if that is what is shown. */
function mapped(answer, at) {
  if (answer.same || answer.vm !== store.vm || at !== moment().at) return;
  store.runs = answer;
  store.changed('runs');
}

function empty(vm, past) {
  if (!store.runs.runs.length && store.runs.past === past) return;
  store.runs = { vm, runs: [], complete: true, past };
  store.changed('runs');
}

/** Events from before the socket was opened; those after it come with the frames. */
async function earlierEvents() {
  if (!canAsk()) return;
  try { store.happened(await ask('events', { since: 0 })); } catch { /* the time line goes without */ }
}

/** What is selected and what the chosen VM's tables map, in one question. */
const refresh = throttled(() => (details.shown() === 'life' ? LIFE_AGAIN : AGAIN), async () => {
  if (!store.selection || store.past || unanswerable(store.selection)) { await refreshRuns(); return; }
  await inquire({ virtual: store.vm, known: store.runs.digest ?? '' });
  if (store.answers.error) await refreshRuns();
});

export function start() {
  let greeted = false;
  store.on('hello', () => { greeted = true; });
  store.on('vm', refreshRuns);
  store.on('live', () => {
    if (greeted) { greeted = false; earlierEvents(); }
    if (store.past) return;
    refresh();
  });
  store.on('tab', () => inquire());
  store.on('looked', () => { refreshRuns(); inquire(); });
}
