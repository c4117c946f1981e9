// SPDX-License-Identifier: Apache-2.0
// What a VM printed on its console, and the terminal that shows it.

import { Terminal } from './terminal.js';

const MOST_BYTES = 65536; // the end of it

/** The end of what a VM printed, as bytes, and the terminal that shows it. */
export class Transcript {
  terminal = new Terminal();
  chunks = [];
  start = null; // position of the first byte that is kept, in all that was printed
  end = 0;

  add(start, bytes) {
    if (this.start === null) this.start = start;
    this.chunks.push(bytes);
    this.end = start + bytes.length;
    while (this.chunks.length > 1 && this.end - this.start - this.chunks[0].length >= MOST_BYTES) this.start += this.chunks.shift().length;
    this.terminal.write(bytes);
  }

  /** The terminal when so many bytes had been printed. */
  at(end) {
    const made = new Terminal();
    let from = this.start ?? 0;
    for (const chunk of this.chunks) {
      if (from >= end) break;
      made.write(chunk.subarray(0, Math.min(end - from, chunk.length)));
      from += chunk.length;
    }
    return made;
  }
}
