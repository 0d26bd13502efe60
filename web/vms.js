/** The table of all virtual machines. Rows stay, only their texts change: nothing jumps, and who is in a row with the keyboard stays there. */
import { count, duration, NONE, per, size } from './format.js';

/** @typedef {import('../src/web/shown.ts').ShownVm} ShownVm */

/** How bad a state is, for its colour; the word says it, too. @type {Record<string, string>} */
const KINDS = {
  PROTECTED: 'good',
  STANDBY: 'good',
  STARTING: 'busy',
  SYNCING: 'busy',
  'TAKING-OVER': 'busy',
  ENDING: 'busy',
  RUNNING: 'warn',
  EXPOSED: 'warn',
  WAITING: 'warn',
  STOPPED: 'idle',
  BLOCKED: 'bad',
  REFUSED: 'bad',
  FENCED: 'bad',
};

/** @param {string} state */
export function kindOf(state) {
  return KINDS[state] ?? 'idle';
}

/** The cells after the name, each with the heading that stands before it where there is no room for columns. */
const CELLS = /** @type {const} */ ([
  { heading: 'State', number: false },
  { heading: 'This host is', number: false },
  { heading: 'Last checkpoint', number: true },
  { heading: 'Pause (median, p99)', number: true },
  { heading: 'Dirty pages', number: true },
  { heading: 'Bandwidth', number: true },
  { heading: 'Held output', number: true },
  { heading: 'If the primary dies now', number: false },
]);

export class VmTable {
  /** @type {Map<string, Row>} */
  #rows = new Map();
  #body;

  /** @param {HTMLTableElement} table */
  constructor(table) {
    this.#body = /** @type {HTMLElement} */ (table.tBodies[0]);
  }

  /** @param {readonly ShownVm[]} vms @param {string | null} chosen */
  show(vms, chosen) {
    const names = new Set(vms.map(({ vm }) => vm));
    for (const [name, row] of this.#rows) {
      if (names.has(name)) continue;
      row.element.remove();
      this.#rows.delete(name);
    }
    for (const [index, vm] of vms.entries()) {
      const row = this.#rows.get(vm.vm) ?? new Row(vm.vm);
      this.#rows.set(vm.vm, row);
      if (this.#body.children[index] !== row.element)
        this.#body.insertBefore(row.element, this.#body.children[index] ?? null);
      row.show(vm, vm.vm === chosen);
    }
  }
}

class Row {
  element = document.createElement('tr');
  #link = document.createElement('a');
  #badge = document.createElement('span');
  #reason = document.createElement('span');
  /** @type {HTMLElement[]} */
  #texts = [];

  /** @param {string} name */
  constructor(name) {
    const head = document.createElement('th');
    head.scope = 'row';
    this.#link.textContent = name;
    this.#link.href = `#vm=${encodeURIComponent(name)}`;
    head.append(this.#link);
    this.element.append(head);
    for (const [index, { heading, number }] of CELLS.entries()) {
      const cell = document.createElement('td');
      cell.dataset['heading'] = heading;
      if (number) cell.className = 'number';
      const text = document.createElement('span');
      if (index === 0) {
        this.#badge.className = 'badge';
        this.#reason.className = 'reason';
        text.append(this.#badge, ' ', this.#reason);
      }
      cell.append(text);
      this.element.append(cell);
      this.#texts.push(text);
    }
  }

  /** @param {ShownVm} vm @param {boolean} chosen */
  show(vm, chosen) {
    if (chosen) this.#link.setAttribute('aria-current', 'true');
    else this.#link.removeAttribute('aria-current');
    this.#badge.dataset['kind'] = kindOf(vm.state);
    write(this.#badge, vm.state);
    write(this.#reason, vm.silence ?? vm.reason);
    for (const [index, text] of cellTexts(vm).entries()) {
      const node = this.#texts[index + 1];
      if (node) write(node, text);
    }
  }
}

/** @param {ShownVm} vm */
function cellTexts({ role, figures, restarts }) {
  const side = role === 'secondary' ? 'standby' : (role ?? NONE);
  const again = restarts > 0 ? `, agent restarted ${restarts}×` : '';
  const toward = figures === null ? '' : role === 'primary' ? ` to ${figures.peer}` : ` at ${figures.peer}`;
  const first = `${side}${toward}${again}`;
  if (figures === null) return [first, NONE, NONE, NONE, NONE, NONE, NONE];
  const held = figures.heldFrames
    ? `${count(figures.heldFrames)} frames, ${size(figures.heldBytes)}`
    : size(figures.heldBytes);
  return [
    first,
    duration(figures.lastCheckpointAgeMs),
    figures.pauseP50Ms === null ? NONE : `${duration(figures.pauseP50Ms)}, ${duration(figures.pauseP99Ms)}`,
    per(count(figures.dirtyPagesPerSecond), 's'),
    per(size(figures.bytesPerSecond), 's'),
    held,
    figures.ifPrimaryDies,
  ];
}

/** Untrusted text, and as text alone. @param {HTMLElement} node @param {string} text */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
