// SPDX-License-Identifier: Apache-2.0
// The console and the text screen of the chosen VM: what they show, and typing into them.

import { command } from './connection.js';
import { decode, line } from './screen.js';
import { store } from './store.js';
import { html } from './svg.js';

const MOST_SHOWN = 2000; // lines that have scrolled away
const SPECIAL = {
  Enter: '\r', Backspace: '\x7f', Tab: '\t', Escape: '\x1b', ArrowUp: '\x1b[A', ArrowDown: '\x1b[B', ArrowRight: '\x1b[C', ArrowLeft: '\x1b[D',
  Home: '\x1b[H', End: '\x1b[F', Delete: '\x1b[3~', PageUp: '\x1b[5~', PageDown: '\x1b[6~', Insert: '\x1b[2~',
};
let elements = null, drawnOf = null, scrolled = 0, said = '';

/** What is sent to the guest for a key, or null if the browser has it. */
export function sent(event) {
  if (event.isComposing || event.altKey || event.metaKey) return null;
  if (event.key === 'Tab' && event.shiftKey) return null; // the way out, by keyboard
  if (event.ctrlKey) {
    if (event.key === ' ') return '\0';
    const code = event.key.length === 1 ? event.key.toUpperCase().charCodeAt(0) : 0;
    return code >= 64 && code < 96 && !'VW'.includes(event.key.toUpperCase()) ? String.fromCharCode(code & 31) : null;
  }
  return SPECIAL[event.key] ?? null;
}

let waiting = '', sending = false;

/** Send what is typed, in order, one request at a time. */
async function type(text) {
  waiting += text;
  if (sending) return;
  sending = true;
  while (waiting) {
    const part = waiting, vm = store.vm;
    waiting = '';
    try {
      const { waiting: left } = await command('type', { vm, text: part });
      say(left ? `${left} bytes wait until the guest reads them` : !store.live.header.playing && !store.live.header.done ? 'paused: the guest reads it when it runs' : '');
    } catch (error) { say(error.message); }
  }
  sending = false;
}

function say(text) { said = text; if (elements) elements.hint.textContent = text || elements.usual; }

/** The elements of the console's tab; they stay, so that what is typed into keeps the focus. */
function make() {
  const past = html('div'), screen = html('div'), pre = html('pre', { class: 'console cells', id: 'console' }, past, screen);
  const keys = html('textarea', { class: 'keys', id: 'keys-to-guest', 'aria-label': 'type on the console', autocomplete: 'off', autocapitalize: 'off', spellcheck: false, rows: 1 });
  keys.addEventListener('keydown', event => {
    event.stopPropagation(); // keys are the guest's here
    const text = sent(event);
    if (text === null) return;
    event.preventDefault();
    type(text);
  });
  keys.addEventListener('input', event => { if (event.isComposing) return; type(keys.value.replace(/\r?\n/g, '\r')); keys.value = ''; });
  keys.addEventListener('compositionend', () => { type(keys.value); keys.value = ''; });
  pre.addEventListener('mouseup', () => { if (getSelection().isCollapsed && !keys.disabled) keys.focus(); }); // a click; not one that marks text
  const title = html('h2'), hint = html('p', { class: 'quiet' });
  elements = { root: html('div', { class: 'typed' }, title, pre, keys, hint), title, past, screen, pre, keys, hint, usual: '' };
  return elements;
}

/** The terminal of a VM at the moment that is looked at. */
function terminal(vm) {
  const held = store.consoles.get(vm.vm_id);
  if (!held) return null;
  return store.past ? held.at(vm.console ?? 0) : held.terminal;
}

/** The console of the chosen VM: its element, brought up to date. */
export function consolePanel() {
  const vm = store.vms[store.position(store.vm)], made = elements ?? make();
  const shown = vm && terminal(vm), may = Boolean(vm && store.hello.can.includes('type') && !store.past && !vm.outcome && vm.condition !== 'off');
  made.title.textContent = vm ? `Console of ${vm.name}` : 'Choose a VM.';
  made.keys.disabled = !may;
  made.root.classList.toggle('may', may);
  made.usual = may ? 'Click and type; shift tab leaves.' : store.past ? 'As it was at that moment.' : vm?.outcome ? `${vm.name} has ended: ${vm.outcome}` : '';
  made.hint.textContent = said || made.usual;
  if (drawnOf !== shown) { drawnOf = shown; scrolled = shown ? Math.max(shown.scrolled - shown.history.length, 0) : 0; made.past.replaceChildren(); said = ''; }
  if (!shown) { made.screen.replaceChildren(); return made.root; }
  const news = shown.history.slice(Math.max(shown.history.length - (shown.scrolled - scrolled), 0));
  scrolled = shown.scrolled;
  made.past.append(...news.map(cells => line(cells)));
  while (made.past.childElementCount > MOST_SHOWN) made.past.firstChild.remove();
  made.past.hidden = Boolean(shown.other);
  const at = shown.hidden ? null : [shown.row, Math.min(shown.column, 79)];
  let last = at ? at[0] : 0;
  shown.lines.forEach((cells, row) => { if (cells.length) last = Math.max(last, row); });
  made.screen.replaceChildren(...shown.lines.slice(0, last + 1).map((cells, row) => line(cells, at && at[0] === row ? at[1] : null)));
  return made.root;
}

/** The text screen (VGA) of the chosen VM. */
export function screenPanel() {
  const vm = store.vms[store.position(store.vm)], part = store.parts.get(`screen:${store.vm}`);
  if (!vm || !part) return [html('p', { class: 'quiet' }, vm ? `${vm.name} shows nothing on a text screen (VGA).` : 'Choose a VM.')];
  const screen = decode(part);
  return [html('h2', {}, `Text screen of ${vm.name}, ${screen.columns} x ${screen.rows}`),
    html('pre', { class: 'vga cells', id: 'screen' }, ...screen.lines.map((cells, row) => line(cells, screen.cursor?.[0] === row ? screen.cursor[1] : null)))];
}
