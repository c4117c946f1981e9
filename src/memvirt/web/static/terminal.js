// SPDX-License-Identifier: Apache-2.0
// What a guest prints on its serial console, as a terminal of 80 x 24 shows it: the part of ECMA-48
// (and DEC's VT100) that kernels, shells and editors use. Cells hold text only, never markup.

const COLUMNS = 80, ROWS = 24, MOST_LINES = 2000; // that have scrolled away
const PLAIN = { text: ' ', style: '' };

export class Terminal {
  constructor() {
    this.decoder = new TextDecoder();
    this.history = []; // lines that have scrolled away, the last of them
    this.scrolled = 0; // how many ever did
    this.reset();
  }

  reset() {
    this.lines = Array.from({ length: ROWS }, () => []);
    Object.assign(this, { row: 0, column: 0, top: 0, bottom: ROWS - 1, style: {}, saved: null, other: null, wraps: false, hidden: false });
    this.take = this.ground;
  }

  write(bytes) { for (const character of this.decoder.decode(bytes, { stream: true })) this.take(character); }

  // States of the parser: each takes one character.

  ground(character) {
    const code = character.codePointAt(0);
    if (code === 27) this.take = this.escape;
    else if (code === 13) { this.column = 0; this.wraps = false; }
    else if (code >= 10 && code <= 12) this.feed();
    else if (code === 8) { this.column = Math.max(this.column - 1, 0); this.wraps = false; }
    else if (code === 9) this.column = Math.min((this.column | 7) + 1, COLUMNS - 1);
    else if (code >= 32 && (code < 127 || code > 159)) this.put(character);
  }

  escape(character) {
    this.take = this.ground;
    const c = character;
    if (c === '[') { this.parameters = ''; this.take = this.control; }
    else if (c === ']' || c === 'P' || c === '_' || c === '^') this.take = this.string;
    else if ('()*+#%'.includes(c)) this.take = () => { this.take = this.ground; };
    else if (c === '7') this.save();
    else if (c === '8') this.restore();
    else if (c === 'D') this.feed();
    else if (c === 'E') { this.column = 0; this.feed(); }
    else if (c === 'M') { if (this.row === this.top) this.scroll(-1); else this.row = Math.max(this.row - 1, 0); }
    else if (c === 'c') this.reset();
  }

  /** What is addressed to the terminal's window, such as a title: it is not shown. */
  string(character) {
    if (character === '\x07' || character === '\x9c') this.take = this.ground;
    else if (character === '\x1b') this.take = () => { this.take = this.ground; };
  }

  control(character) {
    if (character >= '@' && character <= '~') { this.take = this.ground; this.sequence(character); }
    else if (character === '\x1b') this.take = this.escape;
    else if (this.parameters.length < 64) this.parameters += character;
  }

  sequence(final) {
    const given = this.parameters.replace(/[^0-9;?]/g, ''), numbers = given.replace('?', '').split(';').map(Number);
    const first = numbers[0] || 0, many = Math.min(Math.max(first, 1), 999), line = this.lines[this.row];
    this.wraps = false;
    const at = Math.min(this.column, COLUMNS - 1);
    switch (final) {
      case 'A': this.row = Math.max(this.row - many, 0); break;
      case 'B': case 'e': this.row = Math.min(this.row + many, ROWS - 1); break;
      case 'C': case 'a': this.column = Math.min(this.column + many, COLUMNS - 1); break;
      case 'D': this.column = Math.max(this.column - many, 0); break;
      case 'E': this.column = 0; this.row = Math.min(this.row + many, ROWS - 1); break;
      case 'F': this.column = 0; this.row = Math.max(this.row - many, 0); break;
      case 'G': case '`': this.column = Math.min(many, COLUMNS) - 1; break;
      case 'd': this.row = Math.min(many, ROWS) - 1; break;
      case 'H': case 'f': this.row = Math.min(many, ROWS) - 1; this.column = Math.min(Math.max(numbers[1] || 1, 1), COLUMNS) - 1; break;
      case 'J': this.eraseScreen(first, at); break;
      case 'K': this.eraseLine(first, at); break;
      case 'L': this.within(() => this.shift(this.row, this.bottom, -many)); break;
      case 'M': this.within(() => this.shift(this.row, this.bottom, many)); break;
      case 'P': line.splice(at, many); break;
      case '@': this.pad(line, at); line.splice(at, 0, ...Array(Math.min(many, COLUMNS)).fill(PLAIN)); line.length = Math.min(line.length, COLUMNS); break;
      case 'X': for (let i = at; i < Math.min(at + many, COLUMNS); i++) line[i] = PLAIN; this.pad(line, at); break;
      case 'S': this.scroll(many); break;
      case 'T': this.scroll(-many); break;
      case 'r': this.region(first || 1, numbers[1] || ROWS); break;
      case 's': this.save(); break;
      case 'u': this.restore(); break;
      case 'm': this.attributes(numbers); break;
      case 'h': case 'l': if (given.startsWith('?')) for (const mode of numbers) this.mode(mode, final === 'h'); break;
      default: // what asks the terminal, or beeps, has no effect
    }
  }

  // What they do.

  put(character) {
    if (this.wraps) { this.column = 0; this.feed(); }
    const line = this.lines[this.row];
    this.pad(line, this.column);
    line[this.column] = { text: character, style: this.css() };
    this.wraps = this.column === COLUMNS - 1;
    if (!this.wraps) this.column++;
  }

  pad(line, upto) { while (line.length < upto) line.push(PLAIN); }

  feed() {
    this.wraps = false;
    if (this.row === this.bottom) this.scroll(1);
    else this.row = Math.min(this.row + 1, ROWS - 1);
  }

  scroll(many) {
    if (many > 0 && this.top === 0 && !this.other) {
      const gone = this.lines.slice(0, Math.min(many, this.bottom + 1));
      this.history.push(...gone);
      this.scrolled += gone.length;
      if (this.history.length > MOST_LINES) this.history.splice(0, this.history.length - MOST_LINES);
    }
    this.shift(this.top, this.bottom, many);
  }

  /** Move lines up by `many`, or down if that is negative, between two rows. */
  shift(from, to, many) {
    const size = to - from + 1, moved = Math.min(Math.abs(many), size), blank = Array.from({ length: moved }, () => []);
    const part = this.lines.slice(from, to + 1);
    this.lines.splice(from, size, ...(many > 0 ? [...part.slice(moved), ...blank] : [...blank, ...part.slice(0, size - moved)]));
  }

  within(action) { if (this.row >= this.top && this.row <= this.bottom) action(); }

  region(first, last) {
    const [top, bottom] = [Math.max(first, 1) - 1, Math.min(last, ROWS) - 1];
    if (top < bottom) Object.assign(this, { top, bottom, row: 0, column: 0 });
  }

  eraseScreen(how, at) {
    if (how === 3) { this.history = []; return; }
    this.eraseLine(how, at);
    for (let row = 0; row < ROWS; row++) if (how === 2 || (how === 0 && row > this.row) || (how === 1 && row < this.row)) this.lines[row] = [];
  }

  eraseLine(how, at) {
    const line = this.lines[this.row];
    if (how === 2) line.length = 0;
    else if (how === 1) { for (let i = 0; i <= at; i++) line[i] = PLAIN; } else line.length = Math.min(line.length, at);
  }

  save() { this.saved = { row: this.row, column: this.column, style: { ...this.style } }; }
  restore() { Object.assign(this, this.saved ?? { row: 0, column: 0, style: {} }); this.wraps = false; }

  mode(number, on) {
    if (number === 25) this.hidden = !on;
    else if ([47, 1047, 1049].includes(number) && on !== Boolean(this.other)) {
      if (on) { this.save(); this.other = this.lines; this.lines = Array.from({ length: ROWS }, () => []); this.row = this.column = 0; } else { this.lines = this.other; this.other = null; this.restore(); }
      this.top = 0; this.bottom = ROWS - 1;
    }
  }

  attributes(numbers) {
    for (let i = 0; i < numbers.length; i++) {
      const n = numbers[i];
      if (n === 0) this.style = {};
      else if (n === 1) this.style.bold = true;
      else if (n === 7) this.style.reverse = true;
      else if (n === 22) this.style.bold = false;
      else if (n === 27) this.style.reverse = false;
      else if (n >= 30 && n <= 37) this.style.front = n - 30;
      else if (n >= 90 && n <= 97) this.style.front = n - 82;
      else if (n === 39) delete this.style.front;
      else if (n >= 40 && n <= 47) this.style.back = n - 40;
      else if (n >= 100 && n <= 107) this.style.back = n - 92;
      else if (n === 49) delete this.style.back;
      else if (n === 38 || n === 48) { const wide = numbers[i + 1] === 2 ? 4 : 2; if (wide === 2 && numbers[i + 2] < 16) this.style[n === 38 ? 'front' : 'back'] = numbers[i + 2]; i += wide; }
    }
  }

  /** Names of the classes that the style of a cell has. */
  css() {
    const { bold, reverse, front, back } = this.style, made = [];
    if (bold) made.push('bold');
    if (reverse) made.push('reverse');
    if (front !== undefined) made.push(`front${front}`);
    if (back !== undefined) made.push(`back${back}`);
    return made.join(' ');
  }
}
