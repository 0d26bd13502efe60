/** When a VM's process is started, and when it isn't any more: a pure state machine. */

export type ProcessEvent =
  /** Unless it runs. `evenStopped`: also when a person has stopped it. */
  | { type: 'start'; nowMs: number; evenStopped: boolean }
  | { type: 'ended'; nowMs: number; exit: ProcessExit }
  | { type: 'due'; nowMs: number }
  /** A person wants it stopped. What runs is asked itself, and says so at its end. */
  | { type: 'rest' }
  /** In good order, and not again. */
  | { type: 'end' };

export interface ProcessExit {
  /** Null: a signal ended it. */
  code: number | null;
  /** What the process itself said came of it; null: it said nothing. */
  outcome: string | null;
  reason: string;
}

/** Carried out in their order. */
export type ProcessEffect =
  | { type: 'spawn' }
  /** Any earlier one counts no more. */
  | { type: 'wake'; delayMs: number }
  | { type: 'terminate' }
  /** There is no process, and there comes none. */
  | { type: 'ended' };

/** `waiting`: for its next start. `refused`: nothing comes of another start before somebody has changed something. `stopped`: a person wanted it. */
export type ProcessPhase = 'running' | 'waiting' | 'refused' | 'stopped' | 'ending' | 'ended';

export const FIRST_DELAY_MS = 500;
export const DELAY_MS_MAX = 30_000;
/** A process that has run for so long is none that fails at once. */
const STEADY_MS = 60_000;

/** sysexits.h: usage, wrong data, no permission, configuration. Whatever they mean by it, the next start would end the same way. */
const REFUSED_CODES = new Set([64, 65, 77, 78]);
/** There is nothing left to protect here before somebody brings it. */
const RESTING_OUTCOMES = new Set(['stopped', 'handed-over']);

export class ProcessMachine {
  #phase: ProcessPhase = 'ended';
  #reason = 'it has not been started';
  #startedAtMs = 0;
  #failures = 0;

  get phase(): ProcessPhase {
    return this.#phase;
  }

  /** Why it doesn't run, or didn't before this start. */
  get reason(): string {
    return this.#reason;
  }

  /** Whether it has ended since it was last wanted, and not held on for long after that. */
  get falters(): boolean {
    return this.#failures > 0;
  }

  step(event: ProcessEvent): ProcessEffect[] {
    switch (event.type) {
      case 'start':
        return this.#start(event.nowMs, event.evenStopped);
      case 'ended':
        return this.#ended(event.nowMs, event.exit);
      case 'due':
        return this.#phase === 'waiting' ? this.#spawn(event.nowMs) : [];
      case 'rest':
        return this.#rest();
      case 'end':
        return this.#end();
    }
  }

  #start(nowMs: number, evenStopped: boolean): ProcessEffect[] {
    const rests = this.#phase === 'refused' || this.#phase === 'waiting' || this.#phase === 'ended';
    if (!rests && !(evenStopped && this.#phase === 'stopped')) return [];
    this.#failures = 0;
    return this.#spawn(nowMs);
  }

  #spawn(nowMs: number): ProcessEffect[] {
    this.#phase = 'running';
    this.#startedAtMs = nowMs;
    return [{ type: 'spawn' }];
  }

  #ended(nowMs: number, { code, outcome, reason }: ProcessExit): ProcessEffect[] {
    if (this.#phase === 'ending') {
      this.#phase = 'ended';
      this.#reason = reason;
      return [{ type: 'ended' }];
    }
    if (this.#phase !== 'running') throw new Error(`invalid transition [${this.#phase} -> ended by itself]`);
    this.#reason = reason;
    if (outcome !== null && RESTING_OUTCOMES.has(outcome)) {
      this.#phase = 'stopped';
      return [];
    }
    if (code !== null && REFUSED_CODES.has(code)) {
      this.#phase = 'refused';
      return [];
    }
    if (nowMs - this.#startedAtMs >= STEADY_MS) this.#failures = 0;
    this.#phase = 'waiting';
    const delayMs = Math.min(FIRST_DELAY_MS * 2 ** this.#failures, DELAY_MS_MAX);
    this.#failures++;
    return [{ type: 'wake', delayMs }];
  }

  #rest(): ProcessEffect[] {
    if (this.#phase !== 'waiting' && this.#phase !== 'refused') return [];
    this.#phase = 'stopped';
    this.#reason = `stopped by command; before that: ${this.#reason}`;
    return [];
  }

  #end(): ProcessEffect[] {
    if (this.#phase === 'ending' || this.#phase === 'ended') return [];
    if (this.#phase === 'running') {
      this.#phase = 'ending';
      return [{ type: 'terminate' }];
    }
    this.#phase = 'ended';
    return [{ type: 'ended' }];
  }
}
