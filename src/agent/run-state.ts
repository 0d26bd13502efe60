import type { QmpClient } from '../qmp/client.ts';

export interface RunStateEvents {
  /** Somebody else stopped or resumed the VM. */
  onPaused(): void;
  onResumed(): void;
  /** One of our own pauses is over; by QEMU's own clock, STOP event to RESUME event. */
  onPauseEnded(pauseMs: number): void;
}

/** Who resumes the VM when this process dies while `stopped` holds. */
export interface Guard {
  setStopped(stopped: boolean): void;
}

/**
 * Whether the VM runs, and who stopped it: a VM that a person paused must not be resumed by us, and one that we paused must never be left
 * standing (invariant 7). QEMU emits STOP before it answers `stop`, and emits none when the VM stood already.
 */
export class RunState {
  readonly #qmp: QmpClient;
  readonly #guard: Guard;
  readonly #onResumedByUs: () => void;
  #events: RunStateEvents = { onPaused: () => {}, onResumed: () => {}, onPauseEnded: () => {} };
  #ours = false;
  #stopping = false;
  #resuming = false;
  #saving = false;
  /** It is another host's to run. */
  #left = false;
  #stoppedAtMs: number | null = null;
  #lastPauseMs: number | null = null;

  /** `onResumedByUs`: QEMU has answered a `cont` of ours. */
  constructor(qmp: QmpClient, guard: Guard, onResumedByUs: () => void) {
    this.#qmp = qmp;
    this.#guard = guard;
    this.#onResumedByUs = onResumedByUs;
    qmp.onEvent('STOP', (event) => this.#onStop(eventMs(event.timestamp)));
    qmp.onEvent('RESUME', (event) => this.#onResume(eventMs(event.timestamp)));
  }

  /** Events go there from here on. */
  listen(events: RunStateEvents): void {
    this.#events = events;
  }

  /** The VM stands because of us. */
  get stoppedByUs(): boolean {
    return this.#ours;
  }

  /** Resolves when the VM stands and is drained: true when it ran until now. */
  async stop(): Promise<boolean> {
    this.#stopping = true;
    this.#guard.setStopped(true); // INVARIANT 7: from before QEMU knows of the stop until it has answered `cont`
    try {
      await this.#qmp.execute('stop');
    } finally {
      this.#stopping = false;
      if (!this.#ours) this.#guard.setStopped(false);
    }
    return this.#ours;
  }

  /**
   * INVARIANT 4: as stop(), for a VM that is to be handed over: from its answer on it stands whatever becomes of this process, since another host may run it by
   * then.
   */
  async standStill(): Promise<boolean> {
    const wasRunning = await this.stop();
    this.#guard.setStopped(false);
    return wasRunning;
  }

  /** INVARIANT 4: it stands for good, also when somebody has resumed it meanwhile: nothing here resumes it any more. */
  async leave(): Promise<void> {
    this.#left = true;
    await this.standStill();
  }

  /**
   * The save that was issued behind our `stop` has no answer yet. A `cont` of ours lies behind it, so that a RESUME that comes before the answer is
   * somebody else's. `saving`: the promise of QmpClient.execute itself, since the order of replies and events is told only through that.
   */
  expectSave(saving: Promise<unknown>): void {
    this.#saving = true;
    const answered = () => {
      this.#saving = false;
    };
    saving.then(answered, answered);
  }

  /** Resumes the VM if it was we who stopped it. Resolves with how long it stood, as in onPauseEnded; null when nothing was resumed. */
  async resume(): Promise<number | null> {
    if (!this.#ours || this.#left) return null;
    this.#lastPauseMs = null;
    this.#resuming = true;
    try {
      await this.#qmp.execute('cont');
      this.#ours = false;
      this.#guard.setStopped(false);
      this.#onResumedByUs();
      return this.#lastPauseMs; // QEMU sends RESUME before it answers `cont`
    } finally {
      this.#resuming = false;
    }
  }

  /** Runs `body` while the VM stands and all of its I/O has ended. Not in a pause that is somebody else's to end. */
  async whileStopped(body: () => Promise<void>): Promise<void> {
    if (this.#left) return body(); // it stands already, and for good
    if (this.#ours) throw new Error('the VM stands for a checkpoint'); // resuming it here would spoil that
    try {
      await this.stop();
      await body();
    } finally {
      await this.resume();
    }
  }

  #onStop(atMs: number): void {
    if (this.#stopping) {
      this.#ours = true;
      this.#stoppedAtMs = atMs;
    } else {
      this.#events.onPaused();
    }
  }

  #onResume(atMs: number): void {
    if (this.#resuming && !this.#saving) {
      if (this.#stoppedAtMs !== null) {
        this.#lastPauseMs = atMs - this.#stoppedAtMs;
        this.#events.onPauseEnded(this.#lastPauseMs);
      }
      this.#stoppedAtMs = null;
    } else {
      this.#ours = false;
      if (!this.#stopping) this.#guard.setStopped(false); // else it came before our own stop, which is on its way
      this.#events.onResumed();
    }
  }
}

function eventMs(timestamp: { seconds: number; microseconds: number }): number {
  return timestamp.seconds * 1000 + timestamp.microseconds / 1000;
}
