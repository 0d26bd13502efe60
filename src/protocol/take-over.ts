/**
 * A take-over: its checkpoint is finished, its disks are synced, and only then its generation is claimed, because whoever wins it ends the primary's VM: a claim
 * is made by who has nothing left to do but to let the VM run. A step that fails before it leaves the record alone, and with it the primary's claim.
 */
import { type Claim, SEIZE_MS } from './arbiter.ts';
import type { SecondaryContext } from './secondary-context.ts';
import type { Standby } from './standby.ts';

/** Between attempts at what a person may mend meanwhile. */
const RETRY_MS = 10_000;

export class TakeOver {
  readonly reason: string;
  private readonly handedOver: boolean;
  private readonly context: SecondaryContext;
  private readonly standby: Standby;
  private claimed: Claim['kind'] | null = null;
  /** A person stands in for the witness, which is told. */
  private forced = false;
  /** So long it is given to answer. */
  private forcedAtMs: number | null = null;
  private settled = false;
  /** A failed load may be tried once more. */
  private retryLeft = true;
  private retryMs: number | null = null;

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

  /** It isn't decided, and doesn't give way to a primary either. */
  get mayYield(): boolean {
    return this.undecided && !this.forced;
  }

  /** When what was postponed is tried again, or the witness's silence is overridden. */
  get nextTimepointMs(): number | null {
    return this.retryMs ?? this.forcedAtMs;
  }

  /** The person's word has waited long enough to be written down. */
  get unheard(): boolean {
    return this.undecided && this.forcedAtMs !== null && this.context.nowMs >= this.forcedAtMs;
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
      const { handedOver } = this;
      context.emit({ type: 'promote', generation: standby.won, ...(handedOver && { handedOver }) });
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
    if (force && this.undecided) this.force();
    else if (force) this.context.emit({ type: 'skip-fence' });
    const tried = this.retryMs !== null || this.context.steps.size > 0;
    this.retryMs = null;
    return force || tried;
  }

  /** A person knows that the primary doesn't run. */
  force(): void {
    this.forced = true;
  }

  onWon(generation: number): void {
    this.standby.won = generation;
    this.forcedAtMs = null;
  }

  /** Nothing is wanted of the witness any more. */
  withdraw(): void {
    if (this.claimed !== null && this.undecided) this.context.emit({ type: 'withdraw-claim' });
  }

  private claim(): void {
    const kind = this.forced ? 'seize' : 'take-over';
    if (this.claimed === kind) return;
    this.claimed = kind;
    if (kind === 'seize') this.forcedAtMs = this.context.nowMs + SEIZE_MS;
    const { generation, node } = this.standby.source;
    const atLeast = this.context.generation + 1;
    const claim: Claim = kind === 'seize' ? { kind, atLeast } : { kind, generation, primary: node };
    this.context.emit({ type: 'claim', claim });
  }

  private load(): string | null {
    if (!this.retryLeft || !this.standby.retry()) return `failover impossible: ${this.standby.failure}`;
    this.retryLeft = false;
    return null;
  }
}
