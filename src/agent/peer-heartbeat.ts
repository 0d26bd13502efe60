/**
 * A session's heartbeats, on a connection and a native thread of their own (native/core/heartbeat.h): whatever our event loop does, the peer is heard,
 * and hears us. What JavaScript adds is the proof that it runs at all, and the verdict's way into the machine.
 */
import {
  type Heartbeat,
  type HeartbeatOptions,
  type HeartbeatStats,
  type HeartbeatVerdict,
  native,
  type PeerConnection,
  type TlsCredentials,
} from '../native/binding.ts';
import type { Timings } from '../protocol/machine.ts';
import { decodePreface } from '../protocol/preface.ts';
import { monotonicMs } from './driver.ts';
import type { Log } from './log.ts';
import type { HostPort } from './peer-address.ts';

/** How often the event loop shows that it runs. */
const PROGRESS_MS = 250;
/** From READY until the primary's heartbeats have come, and from their connection until the secondary's have. */
const FIRST_HEARTBEAT_MS = 5000;

const NO_REAL_TIME =
  "the heartbeats' thread has no real-time priority: where all processors are busy they come late, and the peer may take this host for dead; " +
  'give the agent CAP_SYS_NICE (systemd: LimitRTPRIO=1), or its peer a longer --peer-timeout';
const NO_LOCKED_MEMORY =
  "the memory of the heartbeats' thread is not locked: on a host that swaps they may come late; " +
  'give the agent CAP_IPC_LOCK (systemd: LimitMEMLOCK=1M), or its peer a longer --peer-timeout';

export interface PeerHeartbeatOptions {
  peer: 'primary' | 'secondary';
  timings: Timings;
  log: Log;
  /** The peer is dead, or as good as dead; `heardMs`, on the clock of `monotonicMs`, is when it was last known to live. Once a session. */
  onSilent(reason: string, heardMs: number): void;
  /** What came aren't heartbeats, or this host can't begin its own: the peer isn't dead. Once a session, instead of `onSilent`. */
  onMalformed(reason: string): void;
}

export class PeerHeartbeat {
  readonly #options: PeerHeartbeatOptions;
  #expected: { token: string; generation: number } | null = null;
  #native: Heartbeat | null = null;
  #progress: NodeJS.Timeout | null = null;
  #firstTimer: NodeJS.Timeout | null = null;
  readonly #warned = new Set<string>();

  constructor(options: PeerHeartbeatOptions) {
    this.#options = options;
  }

  /** The primary's end of a new session. `token`: 32 hex digits, from READY. Without `credentials`, in plain text. */
  connect(
    { host, port }: HostPort,
    token: string,
    generation: number,
    credentials: TlsCredentials | null,
  ): void {
    this.end();
    this.#tryBegin({ host, port, token: Buffer.from(token, 'hex'), credentials }, generation);
  }

  /** The secondary's: the primary's connection has to come soon. */
  expect(token: string, generation: number): void {
    this.end();
    this.#expected = { token, generation };
    const expected = this.#expected;
    const sinceMs = monotonicMs();
    const reason = `the ${this.#options.peer} has opened no heartbeat connection in ${FIRST_HEARTBEAT_MS} ms`;
    this.#firstTimer = setTimeout(() => {
      // After a stand-still of our event loop the connection may be here, unread: it comes first.
      setImmediate(() => {
        if (this.#expected === expected && this.#native === null) this.#options.onSilent(reason, sinceMs);
      });
    }, FIRST_HEARTBEAT_MS);
  }

  /** A connection whose preface the acceptor has read; it is taken over, or closed. */
  accept(connection: PeerConnection, preface: Uint8Array, from: string): void {
    const reason = this.#refusal(preface);
    if (reason !== null) {
      this.#options.log.warn('a heartbeat connection was refused', { peer: from, reason });
      connection.close();
      return;
    }
    const { generation } = this.#expected as { generation: number };
    this.#stopWaiting();
    if (!this.#tryBegin(connection, generation)) connection.close();
  }

  /** With the session; what it would still have told isn't told any more. */
  end(): void {
    this.#stopWaiting();
    this.#expected = null;
    if (this.#progress) clearInterval(this.#progress);
    this.#progress = null;
    this.#native?.close();
    this.#native = null;
  }

  /** Null without a session. */
  stats(): HeartbeatStats | null {
    return this.#native?.stats() ?? null;
  }

  #refusal(bytes: Uint8Array): string | null {
    if (this.#expected === null) return 'there is no session that it could belong to';
    if (this.#native !== null) return 'this session has its heartbeats';
    try {
      const preface = decodePreface(bytes);
      const { token, generation } = this.#expected;
      const matches =
        preface.link === 'heartbeat' && preface.bulkToken === token && preface.generation === generation;
      return matches ? null : 'its token or generation is not that of the session';
    } catch (error) {
      return (error as Error).message;
    }
  }

  /** INVARIANT 7: a want of descriptors or threads costs the session, not the agent. */
  #tryBegin(end: HeartbeatOptions['end'], generation: number): boolean {
    try {
      this.#begin(end, generation);
      return true;
    } catch (error) {
      const reason = (error as Error).message;
      this.#options.log.warn("a session's heartbeats can't be begun", { error: reason });
      this.#options.onMalformed(`this host can't begin its heartbeats: ${reason}`);
      return false;
    }
  }

  #begin(end: HeartbeatOptions['end'], generation: number): void {
    const { heartbeatMs, peerTimeoutMs, stallTimeoutMs } = this.#options.timings;
    const heartbeat: Heartbeat = new native.Heartbeat({
      end,
      generation,
      intervalMs: heartbeatMs,
      timeoutMs: peerTimeoutMs,
      firstTimeoutMs: FIRST_HEARTBEAT_MS,
      stallTimeoutMs,
      // A primary that goes on alone says so before the standby, which waits for that word, would take it for dead.
      closedGraceMs: this.#options.peer === 'secondary' ? heartbeatMs : peerTimeoutMs,
      onVerdict: (kind, reason, heardUs) => {
        const heardMs = monotonicMs() - (Number(process.hrtime.bigint()) / 1e6 - heardUs / 1000);
        // After a stand-still of our event loop the peer's last words may lie on the control connection, unread: they come first.
        setImmediate(() => this.#judged(heartbeat, kind, reason, heardMs));
      },
      onPrivileges: (noRealTime, noLockedMemory) => {
        this.#warnOnce(NO_REAL_TIME, noRealTime);
        this.#warnOnce(NO_LOCKED_MEMORY, noLockedMemory);
      },
    });
    this.#native = heartbeat;
    heartbeat.progress();
    this.#progress = setInterval(() => heartbeat.progress(), PROGRESS_MS);
  }

  #judged(heartbeat: Heartbeat, kind: HeartbeatVerdict, reason: string, heardMs: number): void {
    if (this.#native !== heartbeat) return; // the session has ended in the meantime
    const { peer, onSilent, onMalformed } = this.#options;
    if (kind === 'malformed') onMalformed(`the ${peer} ${reason}`);
    else onSilent(`the ${peer} ${reason}`, heardMs);
  }

  /** Of all sessions: the next one's thread is given no more. */
  #warnOnce(message: string, error: string | null): void {
    if (error === null || this.#warned.has(message)) return;
    this.#warned.add(message);
    this.#options.log.warn(message, { error });
  }

  #stopWaiting(): void {
    if (this.#firstTimer) clearTimeout(this.#firstTimer);
    this.#firstTimer = null;
  }
}
