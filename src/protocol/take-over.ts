/** A take-over: its checkpoint is finished, its disks are synced and its generation is claimed, all at once; when all three are there the VM may run. */
import type { Claim } from './arbiter.ts';
import type { SecondaryContext } from './secondary-context.ts';
import type { Standby } from './standby.ts';

export class TakeOver {
  readonly reason: string;
  private readonly handedOver: boolean;
  private readonly context: SecondaryContext;
  private readonly standby: Standby;
  private claimed = false;
  private settled = false;
  /** A failed load may be tried once more. */
  private retryLeft = true;

  constructor(context: SecondaryContext, standby: Standby, reason: string, handedOver: boolean) {
    this.context = context;
    this.standby = standby;
    this.reason = reason;
    this.handedOver = handedOver;
  }

  /** The witness may still say no, or the primary come back. */
  get undecided(): boolean {
    return this.standby.won === null;
  }

  /** Goes on as far as it can; gives the reason when it can't come to an end. */
  advance(): string | null {
    const { standby, context } = this;
    // A checkpoint whose load has failed is first seen to be usable: whoever wins the generation ends the primary's VM.
    if (this.undecided && !this.claimed && standby.failure === null) this.claim();
    if (context.steps.size > 0) return null;
    if (!standby.loaded) return this.load();
    if (!this.settled) {
      // INVARIANT 6: nothing touches the disks any more.
      context.steps.begin('settle-disks');
      context.emit({ type: 'settle-disks' });
    } else if (standby.won !== null) {
      // INVARIANT 4: the only place where the VM is let run, and only in a generation that has been won.
      context.steps.begin('promote');
      const { handedOver } = this;
      context.emit({ type: 'promote', generation: standby.won, ...(handedOver && { handedOver }) });
    }
    return null;
  }

  onSettled(): void {
    this.settled = true;
  }

  onWon(generation: number): void {
    this.standby.won = generation;
  }

  /** Nothing is wanted of the witness any more. */
  withdraw(): void {
    if (this.claimed && this.undecided) this.context.emit({ type: 'withdraw-claim' });
  }

  private claim(): void {
    this.claimed = true;
    const { generation, node } = this.standby.source;
    const claim: Claim = { kind: 'take-over', generation, primary: node };
    this.context.emit({ type: 'claim', claim });
  }

  private load(): string | null {
    if (!this.retryLeft || !this.standby.retry()) return `failover impossible: ${this.standby.failure}`;
    this.retryLeft = false;
    return null;
  }
}
