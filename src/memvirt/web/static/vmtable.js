// SPDX-License-Identifier: Apache-2.0
// The left side: esxtop's table, sortable, and the settings of the chosen VM.

import { command } from './connection.js';
import { vmColour } from './colors.js';
import { store } from './store.js';
import { html } from './svg.js';

const SHOWN = ['NAME', 'STATE', 'MEMSZ', 'CNSM', 'SZTGT', '%ACTV', 'MCTLSZ', 'SHRD', 'SHRDSVD', 'ZIPPED', 'SWCUR', 'SWR/s', 'GRANT', 'TCHD', 'MCTLTGT'];
let table, form, choice, shown = SHOWN, sort = { column: null, down: true }, notice;

export function start(elements, onNotice) {
  ({ table, form, choice } = elements);
  notice = onNotice;
  elements.columns.onclick = choose;
  table.tBodies[0].addEventListener('pointerdown', event => {
    const row = event.target.closest('tr');
    if (row) store.choose(Number(row.dataset.vm));
  });
  store.on('hello', () => { recalled(); head(); });
  store.on('frame', body);
  store.on('vm', () => { body(); settings(true); });
}

/** Columns of the address bar, or those of `--columns`, or our choice. */
function recalled() {
  const names = new Map(store.hello.columns.map(([name]) => [name.toUpperCase(), name]));
  const asked = new URLSearchParams(location.hash.slice(1)).get('columns')?.toUpperCase().split(',');
  const wanted = asked?.map(name => names.get(name)).filter(Boolean);
  if (wanted) store.columns = wanted;
  else if (store.hello.shown?.length) shown = ['NAME', ...store.hello.shown.filter(name => name !== 'NAME')];
  if (store.columns) shown = store.columns;
}

function columns() { return shown.map(name => store.hello.columns.findIndex(column => column[0] === name)).filter(at => at >= 0); }

/** Let the user choose columns. */
export function choose() {
  choice.replaceChildren(html('h2', {}, 'Columns'), html('div', { class: 'choices' }, ...store.hello.columns.map(([name, meaning]) => {
    const box = html('input', { type: 'checkbox', id: `column-${name}`, checked: shown.includes(name), disabled: name === 'NAME' });
    box.onchange = () => {
      store.columns = shown = store.hello.columns.map(column => column[0]).filter(one => document.getElementById(`column-${one}`).checked);
      head(); body(); store.changed('columns');
    };
    return html('label', { title: meaning }, box, ` ${name}`, html('small', {}, ` ${meaning}`));
  })), html('form', { method: 'dialog' }, html('button', {}, 'close')));
  choice.showModal();
}

function head() {
  table.tHead.replaceChildren(html('tr', {}, ...columns().map(at => {
    const [name, meaning] = store.hello.columns[at];
    return html('th', { scope: 'col', title: meaning, 'data-column': at, tabindex: 0,
      onclick: () => order(at), onkeydown: event => { if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); order(at); } } }, name);
  })));
}

function order(at) {
  sort = { column: at, down: sort.column === at ? !sort.down : true };
  for (const cell of table.tHead.rows[0].cells) {
    if (Number(cell.dataset.column) === at) cell.setAttribute('aria-sort', sort.down ? 'descending' : 'ascending');
    else cell.removeAttribute('aria-sort');
  }
  body();
}

function body() {
  if (!store.hello || !store.header) return;
  if (!table.tHead.rows.length) head();
  let vms = store.vms.map((vm, position) => ({ vm, position }));
  if (sort.column !== null) {
    const value = one => one.vm.cells[sort.column], way = sort.down ? -1 : 1;
    vms = vms.toSorted((a, b) => way * (typeof value(a) === 'string' ? value(a).localeCompare(value(b)) : value(a) - value(b)));
  }
  table.tBodies[0].replaceChildren(...vms.map(({ vm, position }) => row(vm, position)));
  settings(false);
}

function row(vm, position) {
  const dot = html('span', { class: 'dot' });
  dot.style.background = vmColour(position);
  return html('tr', { 'aria-selected': vm.vm_id === store.vm, 'data-vm': vm.vm_id, title: vm.reason || vm.outcome || '' },
    ...columns().map((at, first) => {
      const value = vm.cells[at], text = typeof value === 'string' ? value : value.toFixed(store.hello.columns[at][2]);
      return html('td', {}, first === 0 ? dot : null, text);
    }));
}

const MIB = 256; // pages
const FIELDS = [
  ['shares', 'shares', vm => vm.shares, text => text],
  ['reservation', 'reservation /MB', vm => vm.entitled_min / MIB, text => `${text}M`],
  ['limit', 'limit /MB', vm => vm.entitled_max / MIB, text => `${text}M`],
  ['balloon', 'balloon target /MB', vm => Math.round(vm.balloon_target / MIB * 10) / 10, text => `${text}M`],
];

/** The form is made anew for another VM only: what somebody types stays. */
function settings(anew) {
  const vm = store.vms[store.position(store.vm)];
  form.hidden = !vm || !store.hello.can.includes('set');
  if (form.hidden || (!anew && form.dataset.vm === String(vm.vm_id))) return;
  form.dataset.vm = vm.vm_id;
  form.replaceChildren(html('strong', {}, vm.name), ...FIELDS.flatMap(([what, label, value, send]) => {
    const input = html('input', { id: `set-${what}`, inputmode: 'decimal', value: value(vm) });
    const apply = async () => {
      try { await command('settings', { vm: vm.vm_id, what, value: input.value.trim() === '0' ? '0' : send(input.value.trim()) }); notice(''); }
      catch (error) { notice(error.message); }
    };
    input.addEventListener('keydown', event => { if (event.key === 'Enter') { event.preventDefault(); apply(); } });
    return [html('label', { for: `set-${what}` }, label), input, html('button', { type: 'button', onclick: apply, title: 'in force from the next round on' }, 'set')];
  }));
}
