// SPDX-License-Identifier: Apache-2.0
// What the page knows: the live frame, the moment that is looked at, what is selected. One object,
// changed through its methods; who draws listens.

import { Transcript } from './transcript.js';

class Store extends EventTarget {
  hello = null;
  live = { header: null, parts: new Map() };
  past = null; // { header, parts } of a moment that is over, or null
  series = [];
  events = [];
  consoles = new Map(); // vm_id -> Transcript
  selection = null; // { kind: 'gva' | 'ppn' | 'mpn', vm, ... }
  vm = null; // id of the VM whose guest virtual memory is shown
  runs = { vm: null, runs: [], complete: true };
  answers = {}; // map, page, frame of the selection
  mode = 'state';
  columns = null; // names of those chosen here, or null

  get frame() { return this.past ?? this.live; }
  get header() { return this.frame.header; }
  get parts() { return this.frame.parts; }
  get vms() { return this.header?.vms ?? []; }

  changed(what, detail = {}) { this.dispatchEvent(new CustomEvent(what, { detail })); }
  on(what, listener) { this.addEventListener(what, event => listener(event.detail)); }

  greet(hello) {
    this.hello = hello;
    this.consoles.clear(); // a socket that opens again sends them again
    this.changed('hello');
  }

  receive(header, parts, changed) {
    this.live = { header, parts };
    this.series.push(point(header));
    if (this.series.length > 20000) this.series.splice(0, this.series.length - 20000);
    for (const [id, [start, content]] of Object.entries(header.consoles ?? {})) this.console(Number(id), start, content);
    if (header.news?.length) this.happened(header.news);
    if (this.vm === null && header.vms.length) this.vm = header.vms[0].vm_id;
    this.changed('live', { changed });
    if (!this.past) this.changed('frame', { changed });
  }

  console(id, start, encoded) {
    if (!this.consoles.has(id)) this.consoles.set(id, new Transcript());
    this.consoles.get(id).add(start, Uint8Array.from(atob(encoded), c => c.charCodeAt(0)));
    this.changed('console', { id });
  }

  /** Events, each with its number; some may be known already. */
  happened(news) {
    if (!news.length) return;
    const first = news[0].number, last = news.at(-1).number;
    const before = this.events.filter(event => event.number < first), after = this.events.filter(event => event.number > last);
    this.events = [...before, ...news, ...after].slice(-20000);
    this.changed('events');
  }

  /** Show a moment that is over, or, with null, what is true now. */
  look(past) {
    this.past = past;
    this.answers = {};
    this.changed('frame', { changed: [...this.parts.keys()] });
    this.changed('looked');
    this.changed('answers');
  }

  choose(vm) {
    if (vm === this.vm) return;
    this.vm = vm;
    this.runs = { vm: null, runs: [], complete: true };
    this.changed('vm');
  }

  /** `keep`: the VM whose guest virtual memory is shown stays. */
  select(selection, { keep = false } = {}) {
    this.selection = selection;
    this.answers = {};
    if (!keep && selection?.vm !== undefined && selection.vm !== null) this.choose(selection.vm);
    this.changed('selection');
    if (!keep) this.changed('selected');
  }

  /** Position of a VM among those of the frame. */
  position(vm) { return this.vms.findIndex(one => one.vm_id === vm); }
}

export function point(header) {
  return {
    number: header.number, time_ns: header.time_ns, state: header.host.state, free: header.host.free,
    vms: header.vms.map(vm => [vm.vm_id, Math.round(vm.consumed), vm.balloon, vm.zipped, vm.swapped, vm.target]),
  };
}

export const store = new Store();
