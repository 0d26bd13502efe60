/** The way to a standby: when one is looked for, and when again after a session or an attempt that has failed. It outlives every session. */
import { invalidTransition } from './errors.ts';
import type { PrimaryContext } from './primary-context.ts';

const BACKOFF_MAX = 10;
/** Between attempts when a person must change something first. */
const SLOW_RETRY_MS = 30_000;

export class Link {
  state: 'idle' | 'connecting' | 'up' = 'idle';
  private readonly context: PrimaryContext;
  /** When to connect next; null: not before `start`. */
  private connectAtMs: number | null = null;
  /** Sessions in a row that ended through no fault of the network. */
  private failures = 0;

  constructor(context: PrimaryContext) {
    this.context = context;
  }

  start(word: string): void {
    if (this.connectAtMs !== null || this.state !== 'idle') invalidTransition(word, 'start');
    this.connectAtMs = this.context.nowMs;
  }

  /** When a standby may be looked for; null while one is, or is connected. */
  get dueMs(): number | null {
    return this.state === 'idle' ? this.connectAtMs : null;
  }

  connect(): void {
    this.state = 'connecting';
    this.context.emit({ type: 'connect' });
  }

  onConnected(): void {
    if (this.state !== 'connecting') invalidTransition(`link ${this.state}`, 'peer-connected');
    this.state = 'up';
  }

  /** Ends what there is, an attempt too. */
  disconnect(reason: string): void {
    if (this.state !== 'idle') this.context.emit({ type: 'disconnect', reason });
    this.state = 'idle';
  }

  retry(): void {
    this.connectAtMs = this.context.nowMs + this.context.options.timings.reconnectMs;
  }

  retrySlowly(): void {
    this.connectAtMs = this.context.nowMs + SLOW_RETRY_MS;
  }

  /** After a session that ended by itself. `ours`: through this side's fault, which may last. */
  retryAfterSession(ours: boolean): void {
    const factor = Math.min(2 ** this.failures, BACKOFF_MAX);
    this.connectAtMs = this.context.nowMs + this.context.options.timings.reconnectMs * factor;
    if (ours) this.failures++;
  }

  /** A session that held for a while shows that what failed before is over. */
  onProtectedSince(beganMs: number): void {
    if (this.context.nowMs - beganMs >= SLOW_RETRY_MS) this.failures = 0;
  }
}
