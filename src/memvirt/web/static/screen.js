// SPDX-License-Identifier: Apache-2.0
// The VGA's text screen of a VM, from the part `screen:ID` of a frame (consoles.py says how it is made).

import { html } from './svg.js';

// Code page 437: every one of its 256 glyphs is printable here.
const GLYPHS = [...' ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼'
  + Array.from({ length: 95 }, (_, i) => String.fromCharCode(32 + i)).join('') + '⌂'
  + 'ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■ '];
// The BIOS's colours, in the order of the attribute's bits (blue is bit 0), as ECMA-48 counts them.
const ANSI = [0, 4, 2, 6, 1, 5, 3, 7, 8, 12, 10, 14, 9, 13, 11, 15];

/** { columns, rows, cursor, lines } of a part: each line a list of { text, style }. */
export function decode(part) {
  const view = new DataView(part.buffer, part.byteOffset, part.byteLength), word = at => view.getUint16(2 * at, true);
  const [columns, rows, row, column, blink] = [word(0), word(1), word(2), word(3), word(4)];
  const lines = Array.from({ length: rows }, (_, y) => Array.from({ length: columns }, (__, x) => {
    const at = 10 + 2 * (y * columns + x), attribute = part[at + 1];
    const back = blink ? attribute >> 4 & 7 : attribute >> 4, blinks = blink && attribute & 0x80 ? ' blink' : '';
    return { text: GLYPHS[part[at]], style: `front${ANSI[attribute & 15]} back${ANSI[back]}${blinks}` };
  }));
  return { columns, rows, cursor: row === 0xffff ? null : [row, column], lines };
}

/** One line of cells as elements: runs of one style are one element, and text is text. */
export function line(cells, cursor = null) {
  const made = [];
  let run = '', style = '';
  const end = () => { if (run) made.push(style ? html('span', { class: style }, run) : document.createTextNode(run)); run = ''; };
  const count = Math.max(cells.length, cursor === null ? 0 : cursor + 1);
  for (let i = 0; i < count; i++) {
    const cell = cells[i] ?? { text: ' ', style: '' }, now = i === cursor ? `${cell.style} cursor` : cell.style;
    if (now !== style) { end(); style = now; }
    run += cell.text;
  }
  end();
  return html('div', {}, ...made);
}
