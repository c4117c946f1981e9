// SPDX-License-Identifier: Apache-2.0
// The console and the text screen of the chosen VM: what they show, and typing into them.

import { decode, line } from './screen.js';
import { store } from './store.js';
import { html } from './svg.js';
import { TypedOn } from './typing.js';

const MOST_SHOWN = 2000; // lines that have scrolled away
const BLANK = { cursor: null, lines: Array.from({ length: 25 }, () => []) };
let consoles = null, screens = null, drawnOf = null, scrolled = 0;

function makeConsole() {
  const past = html('div'), screen = html('div'), pre = html('pre', { class: 'console cells', id: 'console' }, past, screen);
  consoles = { past, screen, on: new TypedOn('console', pre, 'keys-to-guest') };
  return consoles;
}

function makeScreen() {
  const pre = html('pre', { class: 'vga cells', id: 'screen' });
  screens = { pre, on: new TypedOn('keyboard', pre, 'keys-to-keyboard') };
  return screens;
}

/** The terminal of a VM at the moment that is looked at. */
function terminal(vm) {
  const held = store.consoles.get(vm.vm_id);
  if (!held) return null;
  return store.past ? held.at(vm.console ?? 0) : held.terminal;
}

/** The console of the chosen VM: its element, brought up to date. */
export function consolePanel() {
  const vm = store.vms[store.position(store.vm)], made = consoles ?? makeConsole(), shown = vm && terminal(vm);
  made.on.title.textContent = vm ? `Console of ${vm.name}` : 'Choose a VM.';
  made.on.update(vm);
  if (drawnOf !== shown) { drawnOf = shown; scrolled = shown ? Math.max(shown.scrolled - shown.history.length, 0) : 0; made.past.replaceChildren(); }
  if (!shown) { made.screen.replaceChildren(); return made.on.root; }
  const news = shown.history.slice(Math.max(shown.history.length - (shown.scrolled - scrolled), 0));
  scrolled = shown.scrolled;
  made.past.append(...news.map(cells => line(cells)));
  while (made.past.childElementCount > MOST_SHOWN) made.past.firstChild.remove();
  made.past.hidden = Boolean(shown.other);
  const at = shown.hidden ? null : [shown.row, Math.min(shown.column, 79)];
  let last = at ? at[0] : 0;
  shown.lines.forEach((cells, row) => { if (cells.length) last = Math.max(last, row); });
  made.screen.replaceChildren(...shown.lines.slice(0, last + 1).map((cells, row) => line(cells, at && at[0] === row ? at[1] : null)));
  return made.on.root;
}

/** The text screen (VGA) of the chosen VM; what is typed on it are keys of the PC's keyboard. */
export function screenPanel() {
  const vm = store.vms[store.position(store.vm)], part = store.parts.get(`screen:${store.vm}`), made = screens ?? makeScreen();
  const typing = vm && document.activeElement === made.on.keys; // a screen that is cleared keeps the focus
  if (!part && !typing) return html('p', { class: 'quiet' }, vm ? `${vm.name} shows nothing on a text screen (VGA).` : 'Choose a VM.');
  const screen = part ? decode(part) : BLANK;
  made.on.title.textContent = part ? `Text screen of ${vm.name}, ${screen.columns} x ${screen.rows}` : `${vm.name} shows nothing on a text screen (VGA).`;
  made.on.update(vm);
  made.pre.replaceChildren(...screen.lines.map((cells, row) => line(cells, screen.cursor?.[0] === row ? screen.cursor[1] : null)));
  return made.on.root;
}
