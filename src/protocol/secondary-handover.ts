/** A primary that has handed its VM over waits on its connection for what becomes of it: how far the take-over is, and what it is told in the end. */
import { refusal } from './secondary-admission.ts';
import type { SecondaryContext } from './secondary-context.ts';
import type { Life } from './secondary-life.ts';

export class Handover {
  answered = false;
  private readonly context: SecondaryContext;
  private readonly epoch: number;
  private readonly sinceMs: number;
  private settledMs = 0;
  private claimedMs: number | null = null;

  constructor(context: SecondaryContext, epoch: number) {
    this.context = context;
    this.epoch = epoch;
    this.sinceMs = context.nowMs;
  }

  onSettled(): void {
    this.settledMs = this.passedMs;
  }

  onClaimed(): void {
    this.claimedMs = this.passedMs;
  }

  /**
   * Tells the primary how it has ended, once it has: returns whether it did so now. The connection is the primary's to close: the end of the heartbeats
   * could come before the answer, and be taken for this side's death.
   */
  answer({ now }: Life): boolean {
    if (this.answered || now === 'taking-over') return false;
    this.answered = true;
    if (now === 'running') {
      const { settledMs, claimedMs, passedMs: runsMs } = this;
      this.context.send({ type: 'took-over', settledMs, claimedMs, runsMs }, this.epoch);
    } else {
      // INVARIANT 4: the primary goes on only where this VM is known not to run; after a `cont` that failed nobody knows.
      this.context.send(
        refusal(now === 'standby' ? 'handover-refused' : 'blocked', this.context.shown.reason),
      );
    }
    return true;
  }

  /** This VM doesn't run, and won't. */
  refuse(reason: string): void {
    this.context.send(refusal('handover-refused', reason));
  }

  private get passedMs(): number {
    return this.context.nowMs - this.sinceMs;
  }
}
