/** The guest's clients, who look all the time: a TCP stream without gap or regression, announcements that every later runner must know, disks that are what memory says. */
import { setTimeout as sleep } from 'node:timers/promises';
import { PORTS, StreamClient } from '../../src/testbed/client.ts';
import { checkDisks } from '../../src/testbed/disk-clients.ts';
import { GUEST_ADDRESS, type TestNetwork } from '../../src/testbed/network.ts';
import { Relay } from '../../src/testbed/relay.ts';
import type { CounterLine } from '../../src/testbed/stream-check.ts';
import { monotonicMs, waitFor } from '../../src/testbed/wait.ts';
import { Announcements } from './announcements.ts';
import type { Journal } from './journal.ts';

const ANSWER_MS = 60_000;
const ASK_AGAIN_MS = 250;
/** No more than a tap device's queue takes at once. */
const ASK_BATCH = 100;

export class Clients {
  readonly announcements = new Announcements();
  /** Lines of all streams so far. */
  #earlierLines = 0;
  /** The longest time between two lines of one stream. */
  silenceMaxMs = 0;
  #lastLineMs: number | null = null;
  readonly #network: TestNetwork;
  readonly #journal: Journal;
  #stream: StreamClient | null = null;
  #listener: Relay | null = null;
  #asker: Relay | null = null;

  constructor(network: TestNetwork, journal: Journal) {
    this.#network = network;
    this.#journal = journal;
  }

  get lines(): number {
    return this.#earlierLines + (this.#stream?.check.received ?? 0);
  }

  async listen(): Promise<void> {
    this.#asker = await Relay.open(this.#network, ['udp', '0'], ANSWER_MS, (text) =>
      this.announcements.onAnswer(text),
    );
    const target = ['udp', String(PORTS.announcements)];
    this.#listener = await Relay.open(this.#network, target, ANSWER_MS, (text, atMs) => {
      const breach = this.announcements.onHeard(text, atMs);
      if (breach !== null) this.#journal.violate(`output commit: ${breach}`);
    });
  }

  /** To a guest that has just booted. */
  async connect(): Promise<void> {
    this.#stream = await connecting(() => StreamClient.connect(this.#network));
  }

  /** The guest is no more, and rightly so; the next one begins to count anew. */
  async disconnect(): Promise<void> {
    const stream = this.#stream;
    this.#earlierLines = this.lines;
    this.#stream = null;
    this.#lastLineMs = null;
    this.announcements.forget();
    await stream?.destroy();
  }

  /** To be called often. */
  look(): void {
    this.#listener?.assertOpen();
    this.#asker?.assertOpen();
    if (this.#stream === null) return;
    const { check, ended } = this.#stream;
    const { gaps, regressions, lines } = check;
    if (gaps > 0 || regressions > 0)
      this.#journal.violate(`the client's stream has ${gaps} gaps and ${regressions} regressions`);
    if (ended !== undefined) this.#journal.violate(`the client's connection is over: ${ended}`);
    this.#measureSilence(lines);
  }

  #measureSilence(lines: readonly CounterLine[]): void {
    const newest = lines.at(-1)?.atMs ?? null;
    let later = newest;
    for (let index = lines.length - 1; index >= 0 && this.#lastLineMs !== null && later !== null; index--) {
      const atMs = Math.max((lines[index] as CounterLine).atMs, this.#lastLineMs);
      this.silenceMaxMs = Math.max(this.silenceMaxMs, later - atMs);
      if (atMs === this.#lastLineMs) break;
      later = atMs;
    }
    this.#lastLineMs = newest;
  }

  /** In peace, with a guest that answers. Rejects when it doesn't. `switchesMs`: when another VM began to send. */
  async verify(switchesMs: readonly number[]): Promise<void> {
    await this.#stream?.waitAfter(monotonicMs(), ANSWER_MS);
    const suspects = this.announcements.toVerify(switchesMs);
    for (let from = 0; from < suspects.length; from += ASK_BATCH)
      await this.#ask(suspects.slice(from, from + ASK_BATCH));
    for (const breach of this.announcements.verified(suspects))
      this.#journal.violate(`output commit: ${breach}`);
    await connecting(() => checkDisks(this.#network, ANSWER_MS));
  }

  async #ask(batch: readonly number[]): Promise<void> {
    let askedMs = Number.NEGATIVE_INFINITY;
    await waitFor('answer about every announcement', ANSWER_MS, () => {
      const open = batch.filter((sequence) => !this.announcements.answered(sequence));
      if (monotonicMs() - askedMs > ASK_AGAIN_MS) {
        for (const sequence of open)
          this.#asker?.send({ text: String(sequence), host: GUEST_ADDRESS, port: PORTS.secrets });
        askedMs = monotonicMs();
      }
      return open.length === 0;
    });
  }

  async destroy(): Promise<void> {
    await this.#stream?.destroy();
    await this.#listener?.destroy();
    await this.#asker?.destroy();
  }
}

/** A new connection that isn't there at once is tried again: a guest that gets no processor for a while leaves its neighbours' ARP unanswered. */
async function connecting<T>(attempt: () => Promise<T>): Promise<T> {
  const endMs = monotonicMs() + ANSWER_MS;
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      const { message } = error as Error;
      if (!/connection is over: connect|no connection/.test(message) || monotonicMs() > endMs) throw error;
      await sleep(ASK_AGAIN_MS);
    }
  }
}
