import type { Timings } from './machine.ts';

/** One connection's heartbeats: when ours is due, and for how long the peer has said nothing. */
export class Liveness {
  private readonly timings: Timings;
  private heardMs: number;
  private beatMs: number;
  private observedMs: number;

  constructor(timings: Timings, nowMs: number) {
    this.timings = timings;
    this.heardMs = nowMs;
    this.beatMs = nowMs;
    this.observedMs = nowMs;
  }

  /**
   * To be called first with every event. While we ourselves stood still (a stopped process, a suspended host) we couldn't hear the peer, whose
   * messages may lie in the socket: such a time isn't counted as its silence. A tick is wanted every heartbeat, so a longer gap is ours.
   */
  observe(nowMs: number): void {
    const stalledMs = nowMs - this.observedMs - 2 * this.timings.heartbeatMs;
    if (stalledMs > 0) this.heardMs += stalledMs;
    this.observedMs = nowMs;
  }

  heard(nowMs: number): void {
    this.heardMs = nowMs;
  }

  /**
   * The time from which on the peer counts as lost, if it goes on saying nothing. To be compared as it is: with fractions of a millisecond a
   * difference can round the other way than this sum, and a timer set for the one never satisfies the other.
   */
  get lostAtMs(): number {
    return this.heardMs + this.timings.peerTimeoutMs;
  }

  get beatDueMs(): number {
    return this.beatMs + this.timings.heartbeatMs;
  }

  /** True once per heartbeat interval. */
  beat(nowMs: number): boolean {
    if (nowMs < this.beatDueMs) return false;
    this.beatMs = nowMs;
    return true;
  }
}
