// SPDX-License-Identifier: Apache-2.0
// Typing into a guest: on its serial console, or at its keyboard.

import { command } from './connection.js';
import { store } from './store.js';
import { html } from './svg.js';
import { counted } from './words.js';

const SPECIAL = {
  Enter: '\r', Backspace: '\x7f', Tab: '\t', Escape: '\x1b', ArrowUp: '\x1b[A', ArrowDown: '\x1b[B', ArrowRight: '\x1b[C', ArrowLeft: '\x1b[D',
  Home: '\x1b[H', End: '\x1b[F', Delete: '\x1b[3~', PageUp: '\x1b[5~', PageDown: '\x1b[6~', Insert: '\x1b[2~',
};

/** What is sent to the guest for a key, or null if the browser has it. */
function sent(event) {
  if (event.isComposing || event.altKey || event.metaKey) return null;
  if (event.key === 'Tab' && event.shiftKey) return null; // the way out, by keyboard
  if (event.ctrlKey) {
    if (event.key === ' ') return '\0';
    const code = event.key.length === 1 ? event.key.toUpperCase().charCodeAt(0) : 0;
    return code >= 64 && code < 96 && !'VW'.includes(event.key.toUpperCase()) ? String.fromCharCode(code & 31) : null;
  }
  return SPECIAL[event.key] ?? null;
}

/** What is typed on: a heading, cells, and a line that says how it stands. Its elements stay, so that what is typed into keeps the focus. */
export class TypedOn {
  #waiting = ''; #sending = false; #said = ''; #usual = ''; #paused = ''; #of = null;

  /** `device`: console or keyboard. `cells`: the element with what the guest shows. `name`: of the field for keys. */
  constructor(device, cells, name) {
    this.device = device;
    this.title = html('h2');
    this.hint = html('p', { class: 'quiet' });
    this.keys = html('textarea', { class: 'keys', id: name, 'aria-label': `type on the ${device}`, autocomplete: 'off', autocapitalize: 'off', spellcheck: false, rows: 1 });
    this.root = html('div', { class: 'typed' }, this.title, cells, this.keys, this.hint);
    this.keys.addEventListener('keydown', event => {
      event.stopPropagation(); // keys are the guest's here
      const text = sent(event);
      if (text === null) return;
      event.preventDefault();
      this.#type(text);
    });
    this.keys.addEventListener('input', event => { if (event.isComposing) return; this.#type(this.keys.value.replace(/\r?\n/g, '\r')); this.keys.value = ''; });
    this.keys.addEventListener('compositionend', () => { this.#type(this.keys.value); this.keys.value = ''; });
    for (const event of ['focus', 'blur']) this.keys.addEventListener(event, () => this.say(this.#said));
    cells.addEventListener('mouseup', () => { if (getSelection().isCollapsed && !this.keys.disabled) this.keys.focus(); }); // a click; not one that marks text
  }

  /** Say whether `vm` can be typed to now. */
  update(vm) {
    const may = Boolean(vm && store.hello.can.includes('type') && !store.past && !vm.outcome && vm.condition !== 'off');
    this.keys.disabled = !may;
    this.root.classList.toggle('may', may);
    const { playing, done } = store.live.header ?? {};
    if (this.#of !== vm?.vm_id) { this.#of = vm?.vm_id; this.#said = ''; }
    this.#paused = may && !playing && !done ? ' Paused: the guest reads when it runs.' : '';
    this.#usual = may ? '' : store.past ? 'As it was at that moment.' : vm?.outcome ? `${vm.name} has ended: ${vm.outcome}` : '';
    this.say(may ? this.#said : '');
  }

  /** What is said after typing; with nothing, how it stands. */
  say(text) {
    this.#said = text;
    const how = document.activeElement === this.keys ? 'Keys go to the guest; shift tab leaves.' : 'Click, or press k, and type.';
    this.hint.textContent = (text || this.#usual || (this.keys.disabled ? '' : how)) + this.#paused;
  }

  #type(text) {
    if (!text) return;
    this.#waiting += text;
    if (!this.#sending) this.#send();
  }

  /** Send what is typed, in order, one request at a time; with nothing typed, learn what the guest has not read. */
  async #send() {
    this.#sending = true;
    do {
      const part = this.#waiting, vm = store.vm;
      this.#waiting = '';
      try {
        const { waiting: left } = await command('type', { vm, text: part, device: this.device });
        this.say(left ? `Not read by the guest yet: ${counted(left, 'byte')}.` : '');
        if (left) setTimeout(() => { if (!this.#sending && !this.keys.disabled && this.#of === vm) this.#send(); }, 500);
      } catch (error) { this.say(error.message); }
    } while (this.#waiting);
    this.#sending = false;
  }
}
