// SPDX-License-Identifier: Apache-2.0
// The pointer on the page map: hovering shows, a click selects, dragging moves, the wheel zooms.

import { select } from './inquiry.js';
import { selectionAt } from './keys.js';
import * as pagemap from './pagemap.js';
import { counted } from './words.js';

const LINGER = 60; // milliseconds before a pointer that hovers asks

let canvas, tip, pinned = false, hoverTimer = 0, drag = null;

/** Whether the selection stays when the pointer moves on. */
export function pin(value) { pinned = value; }

export function start(elements) {
  ({ canvas, tip } = elements);
  canvas.addEventListener('pointermove', moved);
  canvas.addEventListener('pointerleave', () => { tip.hidden = true; clearTimeout(hoverTimer); });
  canvas.addEventListener('pointerdown', event => {
    const lane = pagemap.laneAt(event.offsetX, event.offsetY);
    if (!lane) return;
    drag = { lane, x: event.offsetX, moved: false };
    pagemap.focusLane(lane);
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener('pointerup', released);
  canvas.addEventListener('wheel', turned, { passive: false });
}

function moved(event) {
  const lane = pagemap.laneAt(event.offsetX, event.offsetY), page = lane?.pageAt(event.offsetX, event.offsetY) ?? null;
  if (drag) {
    if (!drag.moved && Math.abs(event.offsetX - drag.x) < 4) return; // a hand that trembles clicks
    drag.lane.pan((drag.x - event.offsetX) / drag.lane.cell * drag.lane.perCell);
    drag.x = event.offsetX;
    drag.moved = true;
    pagemap.redraw();
    return;
  }
  say(event, lane, page);
  clearTimeout(hoverTimer);
  if (page !== null && !pinned) hoverTimer = setTimeout(() => select(selectionAt(lane, page), { hover: true }), LINGER);
}

function released(event) {
  const was = drag;
  drag = null;
  if (!was || was.moved) return;
  const page = was.lane.pageAt(event.offsetX, event.offsetY);
  pinned = page !== null;
  clearTimeout(hoverTimer);
  select(page === null ? null : selectionAt(was.lane, page)).then(pagemap.redraw);
}

function turned(event) {
  event.preventDefault();
  const lane = pagemap.laneAt(event.offsetX, event.offsetY);
  if (!lane) return;
  pagemap.focusLane(lane);
  if (event.shiftKey) lane.pan(Math.sign(event.deltaY || event.deltaX) * lane.span / 10);
  else lane.zoom(event.deltaY > 0 ? 1.3 : 1 / 1.3, lane.pageAt(event.offsetX, event.offsetY) ?? undefined);
  pagemap.redraw();
}

function say(event, lane, page) {
  tip.hidden = page === null;
  if (page === null) return;
  const many = lane.perCell > 1 ? `  (a cell is ${counted(Math.ceil(lane.perCell), 'page')})` : '';
  tip.textContent = pagemap.describe(lane, page) + many;
  const room = canvas.clientWidth - tip.offsetWidth - 6;
  tip.style.left = `${Math.max(Math.min(event.offsetX + 14, room), 4)}px`;
  tip.style.top = `${Math.max(event.offsetY - 30, 2)}px`;
}
