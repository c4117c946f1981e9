// SPDX-License-Identifier: Apache-2.0
// One lane of pages: which of them it shows, how big, and where each is. Lengths are CSS pixels.

const SMALLEST = 6, BIGGEST = 64; // of a cell
const FEWEST = 8; // pages at the deepest zoom

export class Lane {
  constructor(kind, key, pages) {
    this.kind = kind; // 'virtual' | 'physical' | 'machine'
    this.key = key; // part of the state
    this.first = 0;
    this.span = pages;
    this.pages = pages;
    this.place(0, 0, 1, 1);
  }

  /** The number of pages may change: guest virtual memory does. */
  resize(pages) {
    if (pages === this.pages) return;
    const all = this.first === 0 && this.span >= this.pages;
    this.pages = pages;
    if (all) this.span = pages;
    this.#bound();
  }

  place(x, y, w, h) {
    Object.assign(this, { x, y, w, h });
    this.#arrange();
  }

  #bound() {
    this.span = Math.max(Math.min(this.span, this.pages), Math.min(FEWEST, this.pages), 1);
    this.first = Math.round(Math.max(0, Math.min(this.first, this.pages - this.span)));
    this.#arrange();
  }

  /** The biggest cells with which the span fits; below SMALLEST a cell stands for several pages. */
  #arrange() {
    const { w, h, span } = this;
    let size = Math.min(BIGGEST, h);
    while (size > SMALLEST && Math.floor(w / size) * Math.max(Math.floor(h / size), 1) < span) size--;
    this.columns = Math.max(Math.floor(w / size), 1);
    this.rows = Math.max(Math.floor(h / size), 1);
    this.cell = size;
    this.perCell = Math.max(span / (this.columns * this.rows), 1);
    this.gap = size >= 12 ? 2 : 1;
  }

  get last() { return Math.min(Math.ceil(this.first + this.columns * this.rows * this.perCell), this.pages) - 1; }

  contains(x, y) { return x >= this.x && x < this.x + this.w && y >= this.y && y < this.y + this.h; }

  /** The page at a point, or null. */
  pageAt(x, y) {
    const column = Math.floor((x - this.x) / this.cell), row = Math.floor((y - this.y) / this.cell);
    if (column < 0 || column >= this.columns || row < 0 || row >= this.rows) return null;
    const page = this.first + Math.floor((row * this.columns + column) * this.perCell);
    return page < this.pages ? page : null;
  }

  /** Where a page is: its box; `outside` says that it is not in view and the box is at the edge. */
  box(page) {
    const offset = page - this.first, index = Math.floor(offset / this.perCell);
    if (offset < 0) return { x: this.x, y: this.y, w: 3, h: this.cell, outside: true };
    if (index >= this.columns * this.rows) return { x: this.x + this.w - 3, y: this.y + this.h - this.cell, w: 3, h: this.cell, outside: true };
    const side = this.cell - this.gap;
    return {
      x: this.x + (index % this.columns) * this.cell, y: this.y + Math.floor(index / this.columns) * this.cell,
      w: side, h: side, outside: false,
    };
  }

  zoom(factor, page = this.first + this.span / 2) {
    const part = (page - this.first) / this.span;
    const span = Math.max(Math.min(this.span * factor, this.pages), Math.min(FEWEST, this.pages));
    this.first = page - part * span;
    this.span = span;
    this.#bound();
  }

  pan(pages) { this.first += pages; this.#bound(); }

  /** Bring a page into view, boxes big enough to see it. */
  show(page, span = this.span) {
    this.span = span;
    this.first = page - span / 2;
    this.#bound();
  }
}
