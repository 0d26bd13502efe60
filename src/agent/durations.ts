/** How long something took, each time, since the agent began: quantiles of the last ones, and counts from which anybody can tell those of any time between two looks. */
import { Samples } from './samples.ts';

/** As `status --json` has it. Of one kind of duration the bounds are always the same. */
export interface Histogram {
  /** Ascending. */
  boundsMs: readonly number[];
  /** How many took no longer than the bound at the same place, and longer than the one before; the last: longer than all of them. */
  counts: number[];
  sumMs: number;
}

/** Finest where a pause, a flush or a load is one of a healthy VM. */
export const STEP_BOUNDS_MS = [0.5, 1, 1.5, 2, 3, 4, 5, 7.5, 10, 15, 20, 30, 50, 100, 200, 500, 1000, 5000];
/** From `stop` to RECEIVED: the pause, and a way there and back. */
export const CHECKPOINT_BOUNDS_MS = [
  2, 3, 5, 7.5, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000, 2000, 5000, 10_000,
];
/** Up to those that waited for a witness, a fence or a person. */
export const TAKE_OVER_BOUNDS_MS = [
  20, 50, 100, 200, 300, 500, 750, 1000, 1500, 2000, 3000, 5000, 10_000, 30_000, 60_000, 300_000,
];

export class Durations extends Samples {
  readonly #boundsMs: readonly number[];
  readonly #counts: Float64Array;
  #sumMs = 0;

  constructor(boundsMs: readonly number[]) {
    super();
    this.#boundsMs = boundsMs;
    this.#counts = new Float64Array(boundsMs.length + 1);
  }

  /** May be called in a pause: nothing is allocated. */
  override add(ms: number): void {
    super.add(ms);
    let place = 0;
    while (place < this.#boundsMs.length && ms > (this.#boundsMs[place] as number)) place += 1;
    this.#counts[place] = (this.#counts[place] as number) + 1;
    this.#sumMs += ms;
  }

  histogram(): Histogram {
    return {
      boundsMs: this.#boundsMs,
      counts: [...this.#counts],
      sumMs: Math.round(this.#sumMs * 1000) / 1000,
    };
  }
}
