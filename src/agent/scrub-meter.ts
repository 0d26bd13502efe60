/** What the scrub (INVARIANT 8) has looked at, and what it has found. */
import type { TransmitResult } from '../native/binding.ts';
import { Samples } from './samples.ts';
import type { ScrubStatus } from './status.ts';

export class ScrubMeter {
  readonly #cpuUs = new Samples();
  #rounds = 0;
  #roundBeganMs: number | null = null;
  #lastRoundMs: number | null = null;
  #checkedPages = 0;
  #skippedPages = 0;
  #found = 0;
  #lastFinding: string | null = null;

  transmitted(result: TransmitResult, nowMs: number): void {
    const { scrubCheckedPages, scrubSkippedPages, scrubRounds, scrubCpuUs } = result;
    this.#checkedPages += scrubCheckedPages;
    this.#skippedPages += scrubSkippedPages;
    this.#cpuUs.add(scrubCpuUs);
    this.#roundBeganMs ??= nowMs;
    if (scrubRounds === this.#rounds) return;
    this.#lastRoundMs = (nowMs - this.#roundBeganMs) / (scrubRounds - this.#rounds);
    this.#roundBeganMs = nowMs;
    this.#rounds = scrubRounds;
  }

  /** The standby's RAM is not what the primary's was. */
  found(what: string): void {
    this.#found += 1;
    this.#lastFinding = what;
  }

  status(): Omit<ScrubStatus, 'sliceBytes'> {
    return {
      rounds: this.#rounds,
      lastRoundMs: this.#lastRoundMs === null ? null : Math.round(this.#lastRoundMs),
      checkedPages: this.#checkedPages,
      skippedPages: this.#skippedPages,
      cpuUs: this.#cpuUs.summary(),
      found: this.#found,
      lastFinding: this.#lastFinding,
    };
  }
}
