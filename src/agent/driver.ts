import type { Machine } from '../protocol/machine.ts';

/** A timer that fires so much too late has waited for an event loop that stood still. */
const LATE_MS = 50;

/**
 * Runs a pure machine in the real world: feeds it events one at a time, carries its effects out in order, and keeps the one timer that the
 * machine asks for. An effect may dispatch further events; they wait until the effects before them have been begun.
 */
export class Driver<Event extends { type: string; nowMs: number }, Effect> {
  readonly #machine: Machine<Event, Effect>;
  readonly #perform: (effect: Effect) => void;
  readonly #onStep: (event: Event) => void;
  readonly #queue: Event[] = [];
  #busy = false;
  #stopped = false;
  #timer: NodeJS.Timeout | null = null;
  #timerAtMs: number | null = null;

  constructor(
    machine: Machine<Event, Effect>,
    perform: (effect: Effect) => void,
    onStep: (event: Event) => void = () => {},
  ) {
    this.#machine = machine;
    this.#perform = perform;
    this.#onStep = onStep;
  }

  dispatch(event: Event): void {
    if (this.#stopped) return;
    this.#queue.push(event);
    if (this.#busy) return;
    this.#busy = true;
    try {
      for (let next = this.#queue.shift(); next !== undefined; next = this.#queue.shift()) {
        this.#onStep(next);
        for (const effect of this.#machine.step(next)) this.#perform(effect);
        if (this.#stopped) return;
      }
    } finally {
      this.#busy = false;
    }
    this.#arm();
  }

  /** No event is taken and no timer fires any more. */
  stop(): void {
    this.#stopped = true;
    this.#queue.length = 0;
    if (this.#timer) clearTimeout(this.#timer);
    this.#timer = null;
  }

  #arm(): void {
    const atMs = this.#machine.nextTimepointMs;
    if (atMs === this.#timerAtMs && this.#timer) return;
    if (this.#timer) clearTimeout(this.#timer);
    this.#timerAtMs = atMs;
    this.#timer =
      atMs === null ? null : setTimeout(() => this.#tick(), Math.max(0, Math.ceil(atMs - monotonicMs())));
  }

  #tick(): void {
    this.#timer = null;
    // After a stand-still of the event loop the peer's answers may lie in their sockets, unread: they come before the limits for them.
    if (monotonicMs() - (this.#timerAtMs as number) > LATE_MS) setImmediate(() => this.#dispatchTick());
    else this.#dispatchTick();
  }

  #dispatchTick(): void {
    this.dispatch({ type: 'tick', nowMs: monotonicMs() } as Event);
  }
}

/** The clock of every event: monotonic, in milliseconds with a fraction. */
export function monotonicMs(): number {
  return performance.now();
}
