import { invalidTransition } from './errors.ts';

/**
 * The asynchronous steps that the shell was asked for and hasn't answered, with the epoch each is for (0: none). A session can end at any
 * moment while its steps can't be called back: the next one begins only when the last answer is here, so that no answer is ever taken for
 * another session's.
 */
export class Outstanding<Step extends string> {
  private readonly epochs = new Map<Step, number>();

  get size(): number {
    return this.epochs.size;
  }

  begin(step: Step, epoch = 0): void {
    if (this.epochs.has(step)) invalidTransition(`${step} in progress`, `${step} again`);
    this.epochs.set(step, epoch);
  }

  /** The answer to `step`. Throws for one that nobody waits for, or for another epoch's. */
  end(step: Step, epoch?: number): void {
    const expected = this.epochs.get(step);
    if (expected === undefined || (epoch !== undefined && epoch !== expected)) {
      const waiting = [...this.epochs].map(([name, at]) => `${name} ${at}`).join(', ') || 'nothing';
      invalidTransition(`waiting for ${waiting}`, `${step} ${epoch ?? ''}`.trim());
    }
    this.epochs.delete(step);
  }

  /** Takes back what will not be answered. */
  drop(step: Step): void {
    this.epochs.delete(step);
  }

  has(...steps: Step[]): boolean {
    return steps.some((step) => this.epochs.has(step));
  }
}
