/**
 * A take-over: its checkpoint is finished, its disks are synced, and only then its generation is claimed, because whoever wins it ends the primary's VM: a claim
 * is made by who has nothing left to do but to let the VM run. A step that fails before it leaves the record alone, and with it the primary's claim.
 */
import type { Claim } from './arbiter.ts';
import type { SecondaryContext } from './secondary-context.ts';
import type { Standby } from './standby.ts';

/** Between attempts at what a person may mend meanwhile. */
const RETRY_MS = 10_000;

export class TakeOver {
  readonly reason: string;
  private readonly context: SecondaryContext;
  private readonly standby: Standby;
  private claimed = false;
  private settled = false;
  /** A failed load may be tried once more. */
  private retryLeft = true;
  private retryMs: number | null = null;

  constructor(context: SecondaryContext, standby: Standby, reason: string) {
    this.context = context;
    this.standby = standby;
    this.reason = reason;
  }

  /** The witness may still say no, or the primary come back. */
  get undecided(): boolean {
    return this.standby.won === null;
  }

  /** When what was postponed is tried again. */
  get retryAtMs(): number | null {
    return this.retryMs;
  }

  /** Goes on as far as it can; gives the reason when it can't come to an end. */
  advance(): string | null {
    const { standby, context } = this;
    if (context.steps.size > 0 || (this.retryMs !== null && context.nowMs < this.retryMs)) return null;
    this.retryMs = null;
    if (!standby.loaded) return this.load();
    if (!this.settled) {
      // INVARIANT 6: nothing touches the disks any more.
      context.steps.begin('settle-disks');
      context.emit({ type: 'settle-disks' });
    } else if (standby.won === null) {
      this.claim();
    } else {
      // INVARIANT 4: the only place where the VM is let run, and only in a generation that has been won.
      context.steps.begin('promote');
      context.emit({ type: 'promote', generation: standby.won });
    }
    return null;
  }

  onSettled(): void {
    this.settled = true;
  }

  /** A step that has changed nothing has failed: it is tried again. Gives what to show. */
  postpone(reason: string): string {
    this.retryMs = this.context.nowMs + RETRY_MS;
    const what = this.undecided
      ? "the VM couldn't be let run here"
      : `generation ${this.standby.won} is won, and the VM isn't let run yet`;
    return `${what}: ${reason}; tried again every ${RETRY_MS / 1000} s, and by \`colo-agent failover\``;
  }

  /**
   * A person wants what waits to be tried now; by force without the witness's word or, when that is there, without the fence. Whether there is an end to wait for.
   */
  order(force: boolean): boolean {
    const tried = this.retryMs !== null || this.context.steps.size > 0;
    this.retryMs = null;
    if (force && this.undecided) this.withdraw();
    else if (force) this.context.emit({ type: 'skip-fence' });
    return force || tried;
  }

  onWon(generation: number): void {
    this.standby.won = generation;
  }

  /** Nothing is wanted of the witness any more. */
  withdraw(): void {
    if (this.claimed && this.undecided) this.context.emit({ type: 'withdraw-claim' });
  }

  private claim(): void {
    if (this.claimed) return;
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
