/** Where the time of each take-over went: what was seen, who decided, and each step where it lies between the first sign and the end. */
import { duration, moment } from './format.js';

/** @typedef {import('../src/agent/take-over-record.ts').TakeOverRecord} TakeOverRecord */
/** @typedef {import('../src/agent/take-over-record.ts').TakeOverStep} TakeOverStep */

const SHOWN_MAX = 16;

/** @type {Record<string, string>} */
const DECISIONS = {
  witness: 'the witness',
  person: 'a person',
  primary: 'the primary, which handed it over',
  nobody: 'nobody: there is no witness',
};

export class TakeOvers {
  #element;
  #none;

  /** @param {HTMLElement} element @param {HTMLElement} none shown while there are none */
  constructor(element, none) {
    this.#element = element;
    this.#none = none;
  }

  clear() {
    this.#element.replaceChildren();
    this.#none.hidden = false;
  }

  /** @param {readonly TakeOverRecord[]} records new ones, the oldest first @param {number} nowMs */
  add(records, nowMs) {
    for (const record of records) {
      const before = this.#element.firstElementChild;
      // The latest one alone is open, unless a person has opened others.
      if (before instanceof HTMLDetailsElement && before.dataset['touched'] === undefined)
        before.open = false;
      this.#element.prepend(takeOver(record, nowMs));
    }
    while (this.#element.children.length > SHOWN_MAX) this.#element.lastElementChild?.remove();
    this.#none.hidden = this.#element.children.length > 0;
  }
}

/** @param {TakeOverRecord} record @param {number} nowMs */
function takeOver(record, nowMs) {
  const { vm, outcome, epoch, generation, tookMs, reason, cause, beganAt, decidedBy, steps } = record;
  const element = document.createElement('details');
  element.open = true;
  const summary = document.createElement('summary');
  const badge = made('span', outcome === 'took-over' ? 'took over' : 'gave up');
  badge.className = 'badge';
  badge.dataset['kind'] = outcome === 'took-over' ? 'good' : 'warn';
  const name = made('strong', vm);
  const came =
    outcome === 'took-over'
      ? `in ${duration(tookMs)}, at checkpoint ${epoch}, in generation ${generation}`
      : `after ${duration(tookMs)}: ${reason}`;
  summary.append(name, ' ', badge, ` ${came} · ${moment(beganAt, nowMs)}`);
  summary.addEventListener('click', () => {
    element.dataset['touched'] = '';
  });
  const decided =
    decidedBy === null ? 'nothing was decided' : `decided by ${DECISIONS[decidedBy] ?? decidedBy}`;
  const why = made('p', `${cause}; ${decided}`);
  why.className = 'reason';
  element.append(summary, why, table(steps, tookMs));
  return element;
}

/** @param {readonly TakeOverStep[]} steps @param {number} wholeMs */
function table(steps, wholeMs) {
  const element = document.createElement('table');
  element.className = 'steps';
  const head = element.createTHead().insertRow();
  for (const [text, number] of /** @type {const} */ ([
    ['Step', false],
    ['At', true],
    ['Took', true],
    [`From the first sign to the end, ${duration(wholeMs)}`, false],
  ])) {
    const cell = made('th', text);
    cell.setAttribute('scope', 'col');
    if (number) cell.className = 'number';
    head.append(cell);
  }
  const body = element.createTBody();
  for (const step of steps) body.append(row(step, wholeMs));
  return element;
}

/** @param {TakeOverStep} step @param {number} wholeMs */
function row({ what, atMs, tookMs, detail }, wholeMs) {
  const element = document.createElement('tr');
  const head = made('th', what);
  head.setAttribute('scope', 'row');
  const more = made('small', detail);
  head.append(more);
  const at = made('td', duration(atMs));
  const took = made('td', tookMs === null ? '' : duration(tookMs));
  at.className = 'number';
  took.className = 'number';
  const place = document.createElement('td');
  const track = document.createElement('div');
  const bar = document.createElement('div');
  track.className = 'step-track';
  bar.className = tookMs === null ? 'step-moment' : 'step-bar';
  const share = (/** @type {number} */ ms) => Math.min(100, (100 * ms) / Math.max(wholeMs, Number.MIN_VALUE));
  bar.style.left = `${share(atMs)}%`;
  if (tookMs !== null) bar.style.width = `${Math.min(share(tookMs), 100 - share(atMs))}%`;
  track.append(bar);
  place.append(track);
  element.append(head, at, took, place);
  return element;
}

/** @param {string} tag @param {string} text */
function made(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}
