/** Clients of the guest's services, as a user in the guest's network sees them. */
import { GUEST_ADDRESS, type TestNetwork } from './network.ts';
import { Relay } from './relay.ts';
import { type CounterLine, StreamCheck } from './stream-check.ts';
import { monotonicMs, waitFor } from './wait.ts';

/** guest/init, guest/counter.c, guest/memcheck.c, guest/announce.c, guest/diskcheck.c, guest/sqld.c, guest/diskbench.c, guest/load.c, guest/stream.c. */
export const PORTS = {
  counter: 5000,
  echo: 5001,
  memcheck: 5002,
  diskcheck: 5003,
  sqld: 5004,
  diskbench: 5005,
  load: 5006,
  source: 5007,
  sink: 5008,
  poweroff: 5010,
  reset: 5011,
  announcements: 6000,
  secrets: 6001,
} as const;

export const OPEN_TIMEOUT_MS = 10_000;
const ASK_AGAIN_MS = 250;
/** No more than a tap device's queue takes at once. */
const ASK_BATCH = 128;

/** A client of the counter: is the stream whole, and when did its lines come? */
export class StreamClient {
  readonly check: StreamCheck;
  readonly #relay: Relay;

  private constructor(relay: Relay, check: StreamCheck) {
    this.#relay = relay;
    this.check = check;
  }

  static async connect(network: TestNetwork, host = GUEST_ADDRESS): Promise<StreamClient> {
    const check = new StreamCheck();
    const target = ['tcp', host, String(PORTS.counter)];
    const relay = await Relay.open(network, target, OPEN_TIMEOUT_MS, (text, atMs) => check.push(text, atMs));
    return new StreamClient(relay, check);
  }

  /** Why the connection is over; undefined while it lives. */
  get ended(): string | undefined {
    return this.#relay.ended;
  }

  /** Resolves with the first line that came after `atMs` (on monotonicMs's clock). Rejects when the connection ends before. */
  async waitAfter(atMs: number, timeoutMs: number): Promise<CounterLine> {
    return waitFor(
      'further line of the counter',
      timeoutMs,
      () => {
        const line = this.check.firstAfter(atMs);
        if (!line) this.#relay.assertOpen();
        return line;
      },
      () => `; the last is ${JSON.stringify(this.check.lines.at(-1))}`,
    );
  }

  async destroy(): Promise<void> {
    await this.#relay.destroy();
  }
}

/** Connects, sends `text` if there is any, and resolves with the first line of the answer, without its end. */
export async function request(
  network: TestNetwork,
  port: number,
  text: string,
  timeoutMs: number,
): Promise<string> {
  let answer = '';
  const target = ['tcp', GUEST_ADDRESS, String(port)];
  const relay = await Relay.open(network, target, timeoutMs, (part) => {
    answer += part;
  });
  try {
    if (text) relay.send({ text });
    return await waitFor(`answer from port ${port}`, timeoutMs, () => {
      if (answer.includes('\n')) return answer.slice(0, answer.indexOf('\n'));
      relay.assertOpen();
      return undefined;
    });
  } finally {
    await relay.destroy();
  }
}

/** Has the guest verify all of its structure now. Rejects with the guest's own words when it doesn't hold; resolves with its round. */
export async function checkMemory(network: TestNetwork, timeoutMs: number): Promise<number> {
  const answer = await request(network, PORTS.memcheck, '', timeoutMs);
  const round = /^ok (\d+)$/.exec(answer)?.[1];
  if (round === undefined) throw new Error(`memcheck: ${answer}`);
  return Number(round);
}

export interface Announcement {
  sequence: string;
  /** 64 bits, in decimal. */
  secret: string;
  atMs: number;
}

/** Hears the guest's announcements and later asks the guest what it knows of them. */
export class AnnounceClient {
  /** In the order in which they came. */
  readonly announcements: Announcement[];
  readonly #listener: Relay;
  readonly #asker: Relay;
  /** What the guest said it had stored: sequence number to secret, or to "unknown". */
  readonly #answers: Map<string, string>;

  private constructor(
    listener: Relay,
    asker: Relay,
    announcements: Announcement[],
    answers: Map<string, string>,
  ) {
    this.#listener = listener;
    this.#asker = asker;
    this.announcements = announcements;
    this.#answers = answers;
  }

  static async listen(network: TestNetwork): Promise<AnnounceClient> {
    const announcements: Announcement[] = [];
    const answers = new Map<string, string>();
    // Two sockets, because the guest's answers look like its announcements.
    const asker = await Relay.open(network, ['udp', '0'], OPEN_TIMEOUT_MS, (text) => {
      answers.set(...parsePair(text));
    });
    const target = ['udp', String(PORTS.announcements)];
    const listener = await Relay.open(network, target, OPEN_TIMEOUT_MS, (text, atMs) => {
      const [sequence, secret] = parsePair(text);
      announcements.push({ sequence, secret, atMs });
    });
    return new AnnounceClient(listener, asker, announcements, answers);
  }

  async waitCount(count: number, timeoutMs: number): Promise<void> {
    await waitFor(`announcement number ${count}`, timeoutMs, () => {
      this.#listener.assertOpen();
      return this.announcements.length >= count;
    });
  }

  /**
   * Asks the guest about every announcement heard so far and resolves with those of which it has another secret or none: breaches of output
   * commit. Asks again what isn't answered, as datagrams may be lost; rejects when `timeoutMs` pass
   * without an answer.
   */
  async findUnknown(timeoutMs: number): Promise<Announcement[]> {
    const heard = [...this.announcements];
    this.#answers.clear();
    for (let i = 0; i < heard.length; i += ASK_BATCH)
      await this.#ask(heard.slice(i, i + ASK_BATCH), timeoutMs);
    return heard.filter(({ sequence, secret }) => this.#answers.get(sequence) !== secret);
  }

  async #ask(batch: Announcement[], timeoutMs: number): Promise<void> {
    let askedMs = Number.NEGATIVE_INFINITY;
    await waitFor('answer about every announcement', timeoutMs, () => {
      this.#asker.assertOpen();
      const open = batch.filter(({ sequence }) => !this.#answers.has(sequence));
      if (monotonicMs() - askedMs > ASK_AGAIN_MS) {
        for (const { sequence } of open) {
          this.#asker.send({ text: sequence, host: GUEST_ADDRESS, port: PORTS.secrets });
        }
        askedMs = monotonicMs();
      }
      return open.length === 0;
    });
  }

  async destroy(): Promise<void> {
    await this.#listener.destroy();
    await this.#asker.destroy();
  }
}

function parsePair(text: string): [string, string] {
  const pair = /^(\d+) (\d+|unknown)$/.exec(text);
  if (!pair?.[1] || !pair[2]) throw new Error(`not a datagram of announce: ${JSON.stringify(text)}`);
  return [pair[1], pair[2]];
}
