/** How long each take-over took: from what told of the primary's end until the VM ran here. One that came to nothing isn't counted. */
import type { SecondaryEffect, SecondaryEvent } from '../protocol/machine.ts';
import { Durations, type Histogram, TAKE_OVER_BOUNDS_MS } from './durations.ts';

/** Of all agents of a process: one that has taken over goes on as a primary, and its figures with it. */
export class TakeOverMeter {
  readonly #durations = new Durations(TAKE_OVER_BOUNDS_MS);
  #eventMs = 0;
  #beganMs: number | null = null;

  /** Before the machine sees it. */
  event(event: SecondaryEvent): void {
    // A primary that has gone silent was lost when it was last heard, not when that was long enough ago.
    this.#eventMs = event.type === 'peer-silent' ? Math.min(event.heardMs, event.nowMs) : event.nowMs;
    if (event.type !== 'promoted' || this.#beganMs === null) return;
    this.#durations.add(event.nowMs - this.#beganMs);
    this.#beganMs = null;
  }

  effect(effect: SecondaryEffect): void {
    if (effect.type !== 'state') return;
    if (effect.state === 'TAKING-OVER') this.#beganMs ??= this.#eventMs;
    // BLOCKED is one that waits for the witness.
    else if (effect.state !== 'BLOCKED') this.#beganMs = null;
  }

  histogram(): Histogram {
    return this.#durations.histogram();
  }
}
