/** What has happened, the latest first. */
import { moment } from './format.js';
import { kindOf } from './vms.js';

/** @typedef {import('../src/web/shown.ts').ShownEvent} ShownEvent */

const ROWS_MAX = 50;

export class EventTable {
  #body;

  /** @param {HTMLTableElement} table */
  constructor(table) {
    this.#body = /** @type {HTMLTableSectionElement} */ (table.tBodies[0]);
  }

  clear() {
    this.#body.replaceChildren();
  }

  /** @param {readonly ShownEvent[]} events new ones, the oldest first @param {number} nowMs */
  add(events, nowMs) {
    for (const event of events.slice(-ROWS_MAX)) this.#body.prepend(row(event, nowMs));
    while (this.#body.children.length > ROWS_MAX) this.#body.lastElementChild?.remove();
  }
}

/** @param {ShownEvent} event @param {number} nowMs */
function row({ time, vm, state, reason }, nowMs) {
  const element = document.createElement('tr');
  const when = document.createElement('time');
  when.dateTime = time;
  when.textContent = moment(time, nowMs);
  const badge = document.createElement('span');
  badge.className = 'badge';
  badge.dataset['kind'] = kindOf(state);
  badge.textContent = state;
  for (const content of [when, vm, badge, reason]) {
    const cell = document.createElement('td');
    cell.append(content);
    element.append(cell);
  }
  return element;
}
