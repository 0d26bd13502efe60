/** How the VM gets its network back when nobody holds its checkpoints any more, and how protection ends for good. It outlives every session. */
import type { Authority } from './authority.ts';
import type { PrimaryEffect } from './machine.ts';
import type { PrimaryContext } from './primary-context.ts';
import type { VmControl } from './primary-vm.ts';

export type Outcome = (PrimaryEffect & { type: 'finished' })['outcome'];

export class Departure {
  /** Why protection ends for good, once it does. */
  leaving: { outcome: Outcome; reason: string } | null = null;
  private readonly context: PrimaryContext;
  private readonly vm: VmControl;
  private readonly authority: Authority;
  /** Something of ours, or of an earlier agent that is known to be harmless, lies under the VM's NICs. */
  private handOverDue = false;

  constructor(context: PrimaryContext, vm: VmControl, authority: Authority) {
    this.context = context;
    this.vm = vm;
    this.authority = authority;
  }

  /** By a person's word, which the witness hasn't heard. */
  leaveUnheard(silence: string): void {
    if (this.leaving === null) return;
    const { outcome, reason } = this.leaving;
    this.leaving = { outcome, reason: `${reason}, by force; the witness does not know of it: ${silence}` };
  }

  /** Our gate may be installed by now. */
  noteGate(): void {
    if (this.context.steps.has('gate')) this.handOverDue = true;
  }

  /** The gate of an earlier agent, if there is one, is ours to open: nobody has taken over behind it. Returns whether there was. */
  adoptForeignGate(): boolean {
    if (!this.context.foreignGate) return false;
    this.context.foreignGate = false;
    this.handOverDue = true;
    return true;
  }

  /** Without a session, and with nothing under way that could close the gate again. */
  handOver(): void {
    const { steps } = this.context;
    // INVARIANT 4: a standby that may have taken over must be known not to have.
    if (!this.handOverDue || !this.authority.mayOpenGate || this.context.handedOver) return;
    if (steps.has('hand-over')) return;
    this.handOverDue = false;
    steps.begin('hand-over');
    this.context.emit({ type: 'hand-over' });
  }

  /** Nothing of ours holds the VM or its network. */
  get settled(): boolean {
    if (this.handOverDue || this.vm.stoppedByUs || this.context.steps.has('resume', 'hand-over'))
      return false;
    // Behind the gate of an earlier agent the VM isn't simply left: it would be cut off for good.
    return !this.context.foreignGate || this.leaving?.outcome !== 'stopped';
  }
}
