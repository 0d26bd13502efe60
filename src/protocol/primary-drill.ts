/** A planned failover, as the session that hands the VM over sees it: a last checkpoint, the VM brought to a stand, and the standby's answer. */
import type { PrimaryContext } from './primary-context.ts';
import type { VmControl } from './primary-vm.ts';

/** The guest stands while the standby syncs its disks, asks the witness and lets it run: no longer than this, where somebody else can decide who goes on. */
export const HANDOVER_TIMEOUT_MS = 5000;

export class Drill {
  /** Of the last checkpoint, from its beginning on: no other follows it. */
  epoch: number | null = null;
  private readonly context: PrimaryContext;
  private readonly vm: VmControl;
  private standing = false;
  private offeredMs: number | null = null;

  constructor(context: PrimaryContext, vm: VmControl) {
    this.context = context;
    this.vm = vm;
  }

  /** HANDOVER has been sent: whether the standby runs the VM is its word, or the witness's. */
  get offered(): boolean {
    return this.offeredMs !== null;
  }

  /** When the answer to HANDOVER counts as missing; null while none is owed. */
  get dueMs(): number | null {
    return this.offeredMs === null ? null : this.offeredMs + HANDOVER_TIMEOUT_MS;
  }

  get overdue(): boolean {
    return this.dueMs !== null && this.context.nowMs >= this.dueMs;
  }

  /** Why it can't go on; null: nothing is known. */
  get obstacle(): string | null {
    if (this.offered) return null;
    if (this.vm.shutDown) return 'the guest shut down';
    return this.vm.pausedByOthers ? 'somebody has paused the VM' : null;
  }

  /**
   * The standby has loaded the last checkpoint. What its RECEIVED has let go must have passed through QEMU, which sends nothing of a VM that stands
   * (net/queue.c): a guest that runs on elsewhere takes those frames for sent.
   */
  mayStandMs(committedAtMs: number): number {
    if (this.standing) return Number.POSITIVE_INFINITY;
    return Math.max(this.vm.resumedMs, committedAtMs) + this.context.options.timings.minIntervalMs;
  }

  standStill(): void {
    this.standing = true;
    this.vm.standStill();
  }

  /** The VM stands. INVARIANT 4: from here on it isn't resumed before the standby is known not to run it. */
  offer(epoch: number): void {
    this.offeredMs = this.context.nowMs;
    this.context.handedOver = true;
    this.context.send({ type: 'handover' }, epoch);
  }
}
