/** The part of a checkpoint that lies inside the pause: from `stop-and-save` until its pages and device state are ours. */
import type { PrimaryContext } from './primary-context.ts';
import type { VmControl } from './primary-vm.ts';

interface Attempt {
  epoch: number;
  stopped: boolean;
  captureBegun: boolean;
  pages: number | null;
  vmstateBytes: number | null;
  failed: string | null;
}

export interface CapturedCheckpoint {
  epoch: number;
  pages: number;
  vmstateBytes: number;
}

/** Outlives the session that began it: a pause is always brought to its end, even if nobody wants the checkpoint any more. */
export class Capture {
  private readonly context: PrimaryContext;
  private readonly vm: VmControl;
  private attempt: Attempt | null = null;

  constructor(context: PrimaryContext, vm: VmControl) {
    this.context = context;
    this.vm = vm;
  }

  get active(): boolean {
    return this.attempt !== null;
  }

  begin(epoch: number): void {
    this.attempt = {
      epoch,
      stopped: false,
      captureBegun: false,
      pages: null,
      vmstateBytes: null,
      failed: null,
    };
    this.vm.stopAndSave(epoch);
  }

  onStopped(wasRunning: boolean): void {
    this.vm.onStopped(wasRunning);
    if (this.attempt !== null) this.attempt.stopped = true;
  }

  onCaptured(pages: number): void {
    if (this.attempt !== null) this.attempt.pages = pages;
  }

  onSaved(vmstateBytes: number): void {
    if (this.attempt !== null) this.attempt.vmstateBytes = vmstateBytes;
  }

  onStepFailed(step: 'stop' | 'capture' | 'save', reason: string): void {
    if (step === 'stop') this.vm.onStopFailed();
    this.cancel(`${step} failed: ${reason}`);
  }

  /** Somebody resumed the VM in the middle of our pause: what was captured since isn't one moment of the guest. */
  onResumedByOthers(): void {
    if (this.attempt?.stopped) this.cancel('somebody resumed the VM during the checkpoint');
  }

  cancel(reason: string): void {
    if (this.attempt !== null) this.attempt.failed ??= reason;
  }

  /** Goes on as far as it can; gives the reason when an attempt has come to a failed end. */
  advance(): string | null {
    const { attempt, context } = this;
    if (attempt === null) return null;
    if (attempt.failed !== null) return this.abandon(attempt, attempt.failed);
    if (attempt.stopped && !attempt.captureBegun) {
      // INVARIANT 1, 3, 5: gate sealed, dirty pages collected and protected again only while the VM stands.
      attempt.captureBegun = true;
      context.steps.begin('capture', attempt.epoch);
      context.emit({ type: 'capture', epoch: attempt.epoch });
    }
    return null;
  }

  /** The pages are ours, and the save lies in QEMU's queue before whatever is asked for next: nothing more is needed of a VM that stands. */
  get captured(): boolean {
    return this.attempt !== null && this.attempt.failed === null && this.attempt.pages !== null;
  }

  /** The complete checkpoint, which is the caller's from now on, or null while something is missing. */
  take(): CapturedCheckpoint | null {
    const { attempt } = this;
    if (attempt === null || attempt.failed !== null) return null;
    const { epoch, pages, vmstateBytes } = attempt;
    if (pages === null || vmstateBytes === null) return null;
    this.attempt = null;
    return { epoch, pages, vmstateBytes };
  }

  private abandon(attempt: Attempt, reason: string): string | null {
    if (this.context.steps.has('stop', 'save', 'capture')) return null;
    this.attempt = null;
    // INVARIANT 3: what was collected and will not be sent is dirty again.
    if (attempt.captureBegun) this.context.emit({ type: 'abandon' });
    this.vm.resume();
    return reason;
  }
}
