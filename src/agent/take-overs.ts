/** The take-overs of one VM, as long as this process serves it: what became of each, where its time went, and how long they took. */
import type { SecondaryEffect, SecondaryEvent } from '../protocol/machine.ts';
import { monotonicMs } from './driver.ts';
import { Durations, type Histogram, TAKE_OVER_BOUNDS_MS } from './durations.ts';
import type { TakeOverRecord } from './take-over-record.ts';
import { TakeOverWatch } from './take-over-watch.ts';

const RECORDS_MAX = 32;

/** Of all agents of a process: one that has taken over goes on as a primary, and its figures with it. */
export class TakeOvers {
  readonly #vm: string;
  readonly #onRecord: (record: TakeOverRecord) => void;
  readonly #durations = new Durations(TAKE_OVER_BOUNDS_MS);
  readonly #records: TakeOverRecord[] = [];
  #event: SecondaryEvent = { type: 'start', nowMs: 0 };
  /** Of this event, before it was known that a take-over begins with it. */
  #effects: SecondaryEffect[] = [];
  #watch: TakeOverWatch | null = null;

  /** `onRecord`: a take-over has come to its end, and its VM runs, or doesn't. */
  constructor(vm: string, onRecord: (record: TakeOverRecord) => void = () => {}) {
    this.#vm = vm;
    this.#onRecord = onRecord;
  }

  /** Before the machine sees it. */
  event(event: SecondaryEvent): void {
    this.#event = event;
    this.#effects = [];
    this.#watch?.event(event);
  }

  /** `epoch`: the last that was committed. `takesOver`: whether a take-over is under way after this. */
  effect(effect: SecondaryEffect, epoch: number, takesOver: boolean): void {
    if (effect.type === 'state') this.#onState(effect, epoch, takesOver);
    else if (effect.type === 'finished') this.#giveUp(effect.reason);
    else if (this.#watch === null) this.#effects.push(effect);
    else this.#watch.effect(effect, this.#event.nowMs);
  }

  /** Something that the shell does on the way to `promoted`: resolves and rejects as it does. */
  async timed<T>(what: string, work: () => Promise<T>): Promise<T> {
    const beganMs = monotonicMs();
    try {
      return await work();
    } finally {
      this.#watch?.step(what, beganMs, monotonicMs());
    }
  }

  histogram(): Histogram {
    return this.#durations.histogram();
  }

  /** The oldest first. */
  get records(): readonly TakeOverRecord[] {
    return this.#records;
  }

  #onState({ state, reason }: SecondaryEffect & { type: 'state' }, epoch: number, takesOver: boolean): void {
    if (state === 'TAKING-OVER') this.#begin(reason, epoch);
    else if (state === 'RUNNING') this.#succeed(reason);
    // BLOCKED is also one that waits, for the witness or for what a person may mend.
    else if (state !== 'BLOCKED' || !takesOver) this.#giveUp(reason);
  }

  #begin(reason: string, epoch: number): void {
    if (this.#watch !== null) return;
    const cause = reason.replace(/^at epoch \d+: /, '');
    this.#watch = new TakeOverWatch(this.#event, cause, epoch);
    // Its first step may have been told before.
    for (const effect of this.#effects) this.#watch.effect(effect, this.#event.nowMs);
  }

  #succeed(reason: string): void {
    const record = this.#end('took-over', reason);
    if (record === null) return;
    this.#durations.add(record.tookMs);
    this.#tell(record);
  }

  #giveUp(reason: string): void {
    const record = this.#end('given-up', reason);
    if (record !== null) this.#tell(record);
  }

  #end(outcome: TakeOverRecord['outcome'], reason: string): TakeOverRecord | null {
    const record = this.#watch?.record(this.#vm, outcome, reason, this.#event.nowMs, Date.now()) ?? null;
    this.#watch = null;
    return record;
  }

  #tell(record: TakeOverRecord): void {
    this.#records.push(record);
    if (this.#records.length > RECORDS_MAX) this.#records.shift();
    this.#onRecord(record);
  }
}
