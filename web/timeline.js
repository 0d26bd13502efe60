/** One lane for each virtual machine: in which state it was, and when it changed. The table of events has the same as text. */
import { clock, duration } from './format.js';
import { spansOf } from './spans.js';
import { kindOf } from './vms.js';

/** @typedef {import('../src/web/shown.ts').ShownEvent} ShownEvent */
/** @typedef {import('./spans.js').Span} Span */

const WINDOW_MS = 900_000;
/** Between two marks of the scale. */
const MARK_MS = 180_000;

export class Timeline {
  #element;

  /** @param {HTMLElement} element */
  constructor(element) {
    this.#element = element;
  }

  /** @param {readonly string[]} vms @param {readonly ShownEvent[]} events @param {number} nowMs */
  show(vms, events, nowMs) {
    const startMs = nowMs - WINDOW_MS;
    const lanes = vms.map((vm) =>
      lane(
        vm,
        spansOf(
          events.filter((event) => event.vm === vm),
          startMs,
          nowMs,
        ),
        startMs,
      ),
    );
    this.#element.replaceChildren(...lanes, scale(startMs, nowMs));
  }
}

/** @param {string} vm @param {readonly Span[]} spans @param {number} startMs */
function lane(vm, spans, startMs) {
  const element = division('lane');
  const name = division('lane-name');
  name.textContent = vm;
  const track = division('track');
  track.setAttribute('role', 'img');
  const told = spans.map(
    ({ state, fromMs, toMs }) => `${state} from ${clock(fromMs)} for ${duration(toMs - fromMs)}`,
  );
  track.setAttribute('aria-label', `${vm}: ${told.join(', ') || 'nothing is known'}`);
  for (const { state, reason, fromMs, toMs } of spans) {
    const span = division('span');
    span.dataset['kind'] = kindOf(state);
    span.style.left = `${(100 * (fromMs - startMs)) / WINDOW_MS}%`;
    span.style.width = `${(100 * (toMs - fromMs)) / WINDOW_MS}%`;
    span.title = `${state} from ${clock(fromMs)} for ${duration(toMs - fromMs)}: ${reason}`;
    span.textContent = state;
    track.append(span);
  }
  element.append(name, track);
  return element;
}

/** @param {number} startMs @param {number} endMs */
function scale(startMs, endMs) {
  const element = division('lane');
  element.ariaHidden = 'true';
  const track = division('scale');
  // The last one has room for its whole text.
  for (let at = Math.ceil(startMs / MARK_MS) * MARK_MS; at <= endMs - MARK_MS / 5; at += MARK_MS) {
    const mark = division('mark');
    mark.style.left = `${(100 * (at - startMs)) / WINDOW_MS}%`;
    mark.textContent = clock(at).slice(0, 5);
    track.append(mark);
  }
  element.append(division('lane-name'), track);
  return element;
}

/** @param {string} className */
function division(className) {
  const element = document.createElement('div');
  element.className = className;
  return element;
}
