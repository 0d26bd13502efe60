/** The checkpoint that the SVM holds: committed, then flushed, then loaded. It outlives the session that brought it. */
import type { SecondaryContext } from './secondary-context.ts';

export class Standby {
  /** The last committed epoch; null: RAM is a mixture (a first copy is on its way) or nothing ever came. */
  epoch: number | null = null;
  /** Whose checkpoint it is. */
  source = { generation: 0, node: '' };
  committedAtMs: number | null = null;
  loaded = false;
  /** The generation to run it in, once it has been won. */
  won: number | null = null;
  private flushed = false;
  /** Why the last flush or load failed. With no epoch beside it: why what the SVM holds is no checkpoint. */
  failure: string | null = null;
  private readonly context: SecondaryContext;

  constructor(context: SecondaryContext) {
    this.context = context;
  }

  /** A flush or a load touches the SVM right now. */
  get busy(): boolean {
    return this.context.steps.has('flush', 'load');
  }

  /** Nothing committed waits to be loaded: the next epoch may be committed. */
  get settled(): boolean {
    return !this.busy && (this.epoch === null || this.loaded);
  }

  /** Why nothing can be promoted although a checkpoint was committed; null: that isn't so. */
  get condemned(): string | null {
    return this.epoch === null ? this.failure : null;
  }

  /** INVARIANT 2: what was held is no checkpoint any more; nothing can be promoted until the next commit. */
  discard(): void {
    this.epoch = null;
    this.committedAtMs = null;
    this.loaded = false;
    this.won = null;
    this.failure = null;
  }

  /** The commit point. From here on the SVM goes to this epoch and never back. */
  commit(epoch: number, source: { generation: number; node: string }): void {
    this.epoch = epoch;
    this.source = source;
    this.committedAtMs = this.context.nowMs;
    this.flushed = false;
    this.loaded = false;
    this.failure = null;
    this.flush(epoch);
  }

  onFlushed(epoch: number): void {
    this.context.steps.end('flush', epoch);
    this.flushed = true;
    this.load(epoch);
  }

  /** What failed may be tried again: the engine keeps a committed epoch, and to write it once more does no harm. */
  retry(): boolean {
    if (this.epoch === null || this.loaded || this.busy) return false;
    if (this.flushed) this.load(this.epoch);
    else this.flush(this.epoch);
    return true;
  }

  onLoaded(epoch: number): void {
    this.context.steps.end('load', epoch);
    this.loaded = epoch === this.epoch;
    this.failure = null;
  }

  onFailed(step: 'flush' | 'load', epoch: number, reason: string): void {
    this.context.steps.end(step, epoch);
    this.failure = `${step} of epoch ${epoch}: ${reason}`;
  }

  /** INVARIANT 8: RAM is not what the primary's was, so there is nothing that may be promoted, until the next commit. */
  onDiffers(epoch: number, reason: string): void {
    this.context.steps.end('flush', epoch);
    this.discard();
    this.failure = `epoch ${epoch}: ${reason}`;
  }

  private flush(epoch: number): void {
    // INVARIANT 6: RAM and disks first ...
    this.context.steps.begin('flush', epoch);
    this.context.emit({ type: 'flush', epoch });
  }

  private load(epoch: number): void {
    // ... then the device state.
    if (!this.flushed) throw new Error(`epoch ${epoch} is not flushed`);
    this.context.steps.begin('load', epoch);
    this.context.emit({ type: 'load', epoch });
  }
}
