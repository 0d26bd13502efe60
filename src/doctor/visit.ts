/** A doctor's connection to whoever listens at the other host: an agent, which accepts it and says no more, or a doctor (reception.ts). */
import { Socket } from 'node:net';
import { monotonicMs } from '../agent/driver.ts';
import { type LinkStatus, linkStatus } from '../agent/link-security.ts';
import { type HostPort, reachPeer } from '../agent/peer-address.ts';
import type { TlsCredentials } from '../native/binding.ts';
import { encodePreface } from '../protocol/preface.ts';
import { Lines } from './lines.ts';
import { checkPortrait, type Portrait } from './portrait.ts';

const ANSWER_MS = 10_000;
const PINGS = 20;
/** The first bytes only tell how many to send for a look of about this length. */
const FIRST_BYTES = 4 << 20;
const SENDING_MS = 500;
const SENT_BYTES_MAX = 256 << 20;

export interface RoundTrips {
  medianMs: number;
  longestMs: number;
  /** How far the peer's wall clock is ahead of ours, by the fastest of them; it is known to half of that one's time. */
  clockAheadMs: number;
  clockErrorMs: number;
}

export class Visit {
  readonly address: string;
  readonly security: LinkStatus;
  #portrait: Portrait | null = null;
  #mtu: number | null = null;
  readonly #socket: Socket;
  readonly #lines: Lines;
  readonly #answers: unknown[] = [];
  #roundTrips: Promise<RoundTrips> | null = null;
  #end: string | null = null;
  #wake = () => {};

  /** Rejects as an agent that connects would. */
  static async pay(peer: HostPort, credentials: TlsCredentials | null): Promise<Visit> {
    const { connection, address } = await reachPeer(peer, credentials);
    let visit: Visit | null = null;
    try {
      const security = linkStatus(connection.security());
      visit = new Visit(new Socket({ fd: connection.openSocket() }), address, security);
      await visit.#greet();
      return visit;
    } catch (error) {
      visit?.close();
      connection.close();
      throw error;
    }
  }

  private constructor(socket: Socket, address: string, security: LinkStatus) {
    this.address = address;
    this.security = security;
    this.#socket = socket;
    this.#lines = new Lines(socket, ANSWER_MS, {
      onLine: (value) => {
        this.#answers.push(value);
        this.#wake();
      },
      onSkipped: () => {},
      onEnd: (reason) => {
        this.#end = reason;
        this.#wake();
      },
    });
  }

  /** Null: no doctor answers there. */
  get portrait(): Portrait | null {
    return this.#portrait;
  }

  /** Of the peer's way to us; null: it can't tell. */
  get mtu(): number | null {
    return this.#mtu;
  }

  async #greet(): Promise<void> {
    this.#socket.write(encodePreface({ link: 'doctor' }));
    let greeting: { portrait?: unknown; mtu?: unknown };
    try {
      greeting = (await this.#next()) as object;
    } catch {
      return; // an agent, which has closed the connection
    }
    this.#portrait = checkPortrait(greeting.portrait);
    this.#mtu = typeof greeting.mtu === 'number' ? greeting.mtu : null;
  }

  /** Measured once. */
  roundTrips(): Promise<RoundTrips> {
    this.#roundTrips ??= this.#measureRoundTrips();
    return this.#roundTrips;
  }

  async #measureRoundTrips(): Promise<RoundTrips> {
    const trips: { ms: number; aheadMs: number }[] = [];
    for (let ping = 0; ping < PINGS; ping++) {
      const beganMs = monotonicMs();
      const clockMs = Date.now();
      this.#lines.send({ ping });
      const { clockMs: theirsMs } = (await this.#next()) as { clockMs: number };
      const ms = monotonicMs() - beganMs;
      trips.push({ ms, aheadMs: Number(theirsMs) - (clockMs + ms / 2) });
    }
    trips.sort((a, b) => a.ms - b.ms);
    const [fastest, median, slowest] = [0, PINGS / 2, PINGS - 1].map((at) => trips[at]) as typeof trips;
    return {
      medianMs: median?.ms ?? 0,
      longestMs: slowest?.ms ?? 0,
      clockAheadMs: fastest?.aheadMs ?? 0,
      clockErrorMs: (fastest?.ms ?? 0) / 2 + 1,
    };
  }

  /** Bits a second, on one connection as the agents have them. */
  async measureBandwidth(): Promise<number> {
    const firstMs = await this.#send(FIRST_BYTES);
    const enough = Math.round((FIRST_BYTES / firstMs) * SENDING_MS);
    if (enough <= FIRST_BYTES) return (FIRST_BYTES * 8000) / firstMs;
    const bytes = Math.min(enough, SENT_BYTES_MAX);
    return (bytes * 8000) / (await this.#send(bytes));
  }

  close(): void {
    this.#lines.close();
  }

  /** Resolves with the milliseconds that it took until the peer had all of it. */
  async #send(bytes: number): Promise<number> {
    const piece = Buffer.alloc(256 << 10, 0x5a);
    const beganMs = monotonicMs();
    this.#lines.send({ take: bytes });
    for (let left = bytes; left > 0 && this.#end === null; left -= piece.length) {
      if (!this.#socket.write(piece.subarray(0, Math.min(left, piece.length)))) await this.#drained();
    }
    await this.#next();
    return monotonicMs() - beganMs;
  }

  /** Or ended. */
  #drained(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve;
      this.#socket.once('drain', resolve);
    });
  }

  async #next(): Promise<unknown> {
    while (this.#answers.length === 0) {
      if (this.#end !== null) throw new Error(`the peer's doctor doesn't answer: ${this.#end}`);
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    return this.#answers.shift();
  }
}
