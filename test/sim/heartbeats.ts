/** Heartbeats as native/core/heartbeat.h has them: they go on while the event loop hangs, and stop with the process. */
import type { Connection } from './network.ts';
import type { World } from './world.ts';

export interface HeartbeatHost {
  /** The whole process stands still, its threads too. */
  standsStill(): boolean;
  onSilent(reason: string, heardMs: number): void;
}

export class Heartbeats {
  private readonly world: World;
  private readonly side: 0 | 1;
  private readonly connection: Connection<'beat'>;
  private readonly host: HeartbeatHost;
  private heardMs: number;
  private observedMs: number;
  private closedAtMs: number | null = null;
  /** Lies in the socket. */
  private unread = false;
  private ended = false;

  constructor(world: World, side: 0 | 1, connection: Connection<'beat'>, host: HeartbeatHost) {
    this.world = world;
    this.side = side;
    this.connection = connection;
    this.host = host;
    this.heardMs = world.clock.nowMs;
    this.observedMs = world.clock.nowMs;
    connection.attach(
      side,
      () => {
        this.unread = true;
        this.wake();
      },
      () => {
        this.closedAtMs ??= world.clock.nowMs;
      },
    );
    this.run();
  }

  end(): void {
    if (this.ended) return;
    this.ended = true;
    this.connection.close(this.side);
  }

  /** The process dies. */
  kill(withHost: boolean): void {
    this.ended = true;
    this.connection.kill(this.side, withHost);
  }

  private run(): void {
    if (this.ended) return;
    this.wake();
    if (!this.host.standsStill()) this.connection.send(this.side, 'beat');
    this.world.clock.after(this.world.timings.heartbeatMs, () => this.run());
  }

  private wake(): void {
    if (this.ended || this.host.standsStill()) return;
    const { nowMs } = this.world.clock;
    const { heartbeatMs, peerTimeoutMs } = this.world.timings;
    const stoodMs = Math.max(0, nowMs - this.observedMs - 2 * heartbeatMs);
    this.heardMs += stoodMs;
    if (this.closedAtMs !== null) this.closedAtMs += stoodMs;
    this.observedMs = nowMs;
    if (this.unread) this.heardMs = nowMs;
    this.unread = false;
    const graceMs = this.side === 0 ? heartbeatMs : peerTimeoutMs;
    if (this.closedAtMs !== null && nowMs >= this.closedAtMs + graceMs)
      this.judge('the heartbeats have ended');
    else if (nowMs >= this.heardMs + peerTimeoutMs) this.judge('the peer has said nothing');
  }

  private judge(reason: string): void {
    this.ended = true;
    this.host.onSilent(reason, this.heardMs);
  }
}
