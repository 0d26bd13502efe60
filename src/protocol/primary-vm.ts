/** Who has the protected VM stopped, and since when. It outlives every session. */
import { invalidTransition } from './errors.ts';
import type { PrimaryContext } from './primary-context.ts';

const RESUME_RETRY_MS = 200;

export class VmControl {
  /** Somebody else paused it: it must not be resumed by us. */
  pausedByOthers = false;
  /** The guest has shut down: there is nothing to resume. */
  shutDown = false;
  /** When our last pause began, when it ended, and how long it was. */
  startedMs = Number.NEGATIVE_INFINITY;
  resumedMs = Number.NEGATIVE_INFINITY;
  pauseMs = 0;
  /** Why the VM can't be resumed, while it can't. */
  trouble: string | null = null;
  private readonly context: PrimaryContext;
  private ours = false;
  private retryAtMs: number | null = null;

  constructor(context: PrimaryContext) {
    this.context = context;
  }

  /**
   * INVARIANT 7: true from the moment that `stop` is asked for until the VM is known to run again. Whatever happens to the checkpoint or the
   * session, somebody must call resume() while this holds.
   */
  get stoppedByUs(): boolean {
    return this.ours;
  }

  get retryMs(): number | null {
    return this.retryAtMs;
  }

  stopAndSave(epoch: number): void {
    if (this.ours) invalidTransition('stopped by us', `stop-and-save ${epoch}`);
    const { context } = this;
    this.ours = true;
    this.startedMs = context.nowMs;
    context.steps.begin('stop', epoch);
    context.steps.begin('save', epoch);
    context.emit({ type: 'stop-and-save', epoch });
  }

  /** For a VM that is to go on elsewhere. */
  standStill(): void {
    const { context } = this;
    this.ours = true;
    this.startedMs = context.nowMs;
    context.steps.begin('stand');
    context.emit({ type: 'stand-still' });
  }

  onStopped(wasRunning: boolean): void {
    if (wasRunning) {
      // Whoever had paused it resumed it before our stop.
      this.pausedByOthers = false;
    } else {
      this.ours = false;
      this.pausedByOthers = true;
    }
  }

  /** A stop that failed may have stopped the VM all the same: it stays ours to resume, unless it stood before. */
  onStopFailed(): void {
    if (this.pausedByOthers) this.ours = false;
  }

  /** INVARIANT 7: gives the VM back if we hold it. Safe to call at any time. INVARIANT 4: not one that may run elsewhere. */
  resume(): void {
    if (!this.ours || this.context.handedOver) return;
    if (this.retryAtMs !== null || this.context.steps.has('resume', 'stop', 'stand')) return;
    if (this.shutDown) {
      this.ours = false;
      return;
    }
    this.context.steps.begin('resume');
    this.context.emit({ type: 'resume' });
  }

  onResumed(stoodMs?: number): void {
    if (this.ours) this.running(stoodMs);
  }

  /** Something that stops the VM for a moment by itself has failed: it may stand. */
  reclaim(): void {
    if (this.shutDown) return;
    if (!this.ours) this.startedMs = this.context.nowMs;
    this.ours = true;
  }

  onResumeFailed(reason: string): void {
    if (this.shutDown) this.ours = false;
    if (!this.ours) return;
    this.trouble = `the VM could not be resumed: ${reason}; trying again`;
    this.retryAtMs = this.context.nowMs + RESUME_RETRY_MS;
  }

  /** While our own stop is under way its answer tells better who stopped the VM first. */
  onPausedByOthers(): void {
    if (!this.context.steps.has('stop', 'stand', 'protect')) this.pausedByOthers = true;
  }

  onResumedByOthers(): void {
    this.pausedByOthers = false;
    this.shutDown = false;
    if (this.ours && !this.context.steps.has('stop', 'stand')) this.running();
  }

  onShutdown(): void {
    this.shutDown = true;
    this.trouble = null;
    this.retryAtMs = null;
    if (!this.context.steps.has('stop', 'stand', 'resume')) this.ours = false;
  }

  poll(): void {
    if (this.retryAtMs === null || this.context.nowMs < this.retryAtMs) return;
    this.retryAtMs = null;
    this.resume();
  }

  private running(stoodMs?: number): void {
    this.ours = false;
    this.trouble = null;
    this.retryAtMs = null;
    this.resumedMs = this.context.nowMs;
    const seenMs = this.resumedMs - this.startedMs;
    // QEMU stamps its events by the wall clock, which may be set in between.
    this.pauseMs = Math.min(Math.max(stoodMs ?? seenMs, 0), seenMs);
  }
}
