/**
 * INVARIANT 4 as the network sees it: one VM after the other, each in a generation of its own. Pure. Every VM that is started has a tap device of its own, so the
 * devices that the guest's frames come from tell who answers for its address.
 */
import type { VmRecord } from '../../src/protocol/arbiter.ts';
import type { VmHost } from './plan.ts';

/** Frames in a row from one tap device. */
export interface Burst {
  tap: string;
  firstMs: number;
  lastMs: number;
  frames: number;
}

/** A VM that was seen to send. */
export interface Runner {
  tap: string;
  host: VmHost;
  firstMs: number;
}

/**
 * What its standby had confirmed may lie on its way out of a primary that stands still, in a socket's buffer: it comes when the processes go on, for a moment, as a
 * frame that a switch held up would. The client's own check tells that it is of the generation before (no number is announced with two secrets).
 */
const LATE_MS = 1000;

export class OneRunner {
  /** In the order in which they began to send. */
  readonly runners: Runner[] = [];
  frames = 0;
  lateFrames = 0;
  /** VMs that somebody began to boot, and gave up before they were protected. */
  readonly #givenUp = new Set<string>();
  readonly #hostOf: (tap: string) => VmHost;
  readonly #wentOnMs: (host: VmHost) => number;
  /** The devices of VMs that have been handed over, and when that was known. */
  readonly #standbySinceMs = new Map<string, number>();

  /** `wentOnMs`: when a process of that host got its last SIGCONT; minus infinity: never. */
  constructor(hostOf: (tap: string) => VmHost, wentOnMs: (host: VmHost) => number) {
    this.#hostOf = hostOf;
    this.#wentOnMs = wentOnMs;
  }

  /** Its VM has been handed over, and is the standby: it may run again, in another generation. */
  standsBy(tap: string, sinceMs: number): void {
    this.#standbySinceMs.set(tap, sinceMs);
  }

  /** In order. Returns what is wrong with it. */
  push(burst: Burst): string | null {
    this.frames += burst.frames;
    const current = this.runners.at(-1);
    if (current?.tap === burst.tap) return null;
    const before = this.runners.findLast(({ tap }) => tap === burst.tap);
    const host = this.#hostOf(burst.tap);
    if (current === undefined || before === undefined || this.#stoodBy(before, burst)) {
      this.runners.push({ tap: burst.tap, host, firstMs: burst.firstMs });
      return null;
    }
    const successor = this.runners[this.runners.indexOf(before) + 1] as Runner;
    if (burst.lastMs <= Math.max(successor.firstMs, this.#wentOnMs(host)) + LATE_MS) {
      this.lateFrames += burst.frames;
      return null;
    }
    const afterMs = Math.round(burst.lastMs - successor.firstMs);
    return `two VMs answer: ${burst.frames} frames of ${burst.tap} (${host}) ${afterMs} ms after ${successor.tap} (${successor.host}) began to send`;
  }

  #stoodBy(before: Runner, { tap, firstMs }: Burst): boolean {
    const sinceMs = this.#standbySinceMs.get(tap) ?? Number.NEGATIVE_INFINITY;
    return before.firstMs < sinceMs && sinceMs < firstMs;
  }

  /** A VM that was ended by hand, whether it has had a generation or not. */
  giveUp(tap: string): void {
    this.#givenUp.add(tap);
  }

  /** Whether each had a generation that its host won alone after the one before. `history`: every record that there was, in order. */
  check(history: readonly VmRecord[]): string | null {
    let next = 0;
    for (const { tap, host } of this.runners) {
      if (this.#givenUp.has(tap)) continue;
      const found = history.findIndex(
        ({ mode, primary }, index) => index >= next && mode === 'alone' && primary === host,
      );
      if (found < 0) return `${tap} (${host}) sent without a generation of its own`;
      next = found + 1;
    }
    return null;
  }
}
