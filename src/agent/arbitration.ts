/** One agent's side of arbitration: runs the arbiter's requests against the witness, and makes what is won durable here before anybody acts on it. */
import { randomBytes } from 'node:crypto';
import {
  Arbiter,
  type ArbiterEffect,
  type ArbiterEvent,
  type Claim,
  type Entry,
  encodeRecord,
  parseRecord,
  type VmRecord,
} from '../protocol/arbiter.ts';
import type { ClaimEvent, Superseded } from '../protocol/machine.ts';
import { ABSENT, type EtcdClient, type KeyValue } from '../witness/etcd.ts';
import { Driver, monotonicMs } from './driver.ts';
import type { GenerationFile } from './generation-file.ts';
import type { Log } from './log.ts';

export interface WitnessStatus {
  /** `manual`: a person decides. `none`: nobody does. */
  kind: 'etcd' | 'manual' | 'none';
  /** What this host calls itself. */
  node: string;
  /** Whether etcd answered the last request; null for other kinds, and before the first. */
  answers: boolean | null;
  /** Why not. */
  reason: string;
}

/** Who decides, when the two sides have lost each other. */
export type WitnessChoice =
  /** `key`: of this VM's record. `nodeKey`: this host's own, under the same prefix. */
  { kind: 'etcd'; client: EtcdClient; key: string; nodeKey: string } | { kind: 'manual' | 'none' };

export interface ArbitrationOptions {
  witness: WitnessChoice & { kind: 'etcd' };
  node: string;
  generations: GenerationFile;
  log: Log;
}

/**
 * The record is looked at so often, to keep a connection to a living member warm and its revision known: the claim that a failover waits for is then one round
 * trip.
 */
const LOOK_INTERVAL_MS = 2000;

export function noWitness(kind: 'etcd' | 'manual' | 'none', node: string): WitnessStatus {
  return { kind, node, answers: null, reason: '' };
}

/** Runs what makes an agent. When that fails, nobody arbitrates, and so nobody but this would close the connection to the witness. */
export async function closingOnFailure<T>(witness: WitnessChoice, make: () => Promise<T>): Promise<T> {
  try {
    return await make();
  } catch (error) {
    if (witness.kind === 'etcd') witness.client.close();
    throw error;
  }
}

/** Without etcd there is nothing to run. */
export function arbitrationOf(
  witness: WitnessChoice,
  options: Omit<ArbitrationOptions, 'witness'>,
  onAnswer: (event: ClaimEvent | Superseded) => void,
): Arbitration | null {
  return witness.kind === 'etcd' ? new Arbitration({ ...options, witness }, onAnswer) : null;
}

type EventBody = ArbiterEvent extends infer E ? (E extends ArbiterEvent ? Omit<E, 'nowMs'> : never) : never;

export class Arbitration {
  readonly #options: ArbitrationOptions;
  readonly #arbiter: Arbiter;
  readonly #driver: Driver<ArbiterEvent, ArbiterEffect>;
  readonly #onAnswer: (event: ClaimEvent | Superseded) => void;
  readonly #looking: NodeJS.Timeout;
  #answers: boolean | null = null;
  #reason = '';
  /** Of the claim that is wanted now. */
  #claims = 0;

  constructor(options: ArbitrationOptions, onAnswer: (event: ClaimEvent | Superseded) => void) {
    this.#options = options;
    this.#onAnswer = onAnswer;
    const { highest: seen, won } = options.generations;
    this.#arbiter = new Arbiter(options.node, { seen, won });
    this.#driver = new Driver(this.#arbiter, (effect) => this.#perform(effect));
    this.#looking = setInterval(() => this.#dispatch({ type: 'look' }), LOOK_INTERVAL_MS);
  }

  /** Takes the place of a claim before. Its answers come as events. */
  ask(claim: Claim): void {
    this.#claims++;
    this.#options.log.info('claim', { claim: JSON.stringify(claim) });
    this.#dispatch({ type: 'ask', claim, id: randomBytes(16).toString('hex') });
  }

  /** What the witness holds now, linearisably; null: nothing. Rejects with EtcdError, and with Error for what is no record. */
  async read(): Promise<VmRecord | null> {
    const { client, key } = this.#options.witness;
    return this.#entryOf(await client.read(key)).record;
  }

  withdraw(): void {
    this.#claims++;
    this.#dispatch({ type: 'withdraw' });
  }

  status(): WitnessStatus {
    return { kind: 'etcd', node: this.#options.node, answers: this.#answers, reason: this.#reason };
  }

  close(): void {
    this.#claims++;
    clearInterval(this.#looking);
    this.#driver.stop();
    this.#options.witness.client.close();
  }

  #dispatch(body: EventBody): void {
    this.#driver.dispatch({ ...body, nowMs: monotonicMs() } as ArbiterEvent);
  }

  #perform(effect: ArbiterEffect): void {
    const { client, key } = this.#options.witness;
    switch (effect.type) {
      case 'read':
        this.#request(effect.request, client.read(key));
        break;
      case 'transact': {
        const put = client.putIf(key, effect.expected, encodeRecord(effect.record));
        this.#request(
          effect.request,
          put.then(({ current }) => current),
        );
        break;
      }
      case 'won':
        void this.#won(effect.claim, effect.generation);
        break;
      case 'lost':
        this.#tell({ type: 'claim-lost', kind: effect.claim.kind, reason: this.#lostTo(effect.holder) });
        break;
      case 'superseded': {
        const { generation } = effect.holder;
        this.#tell({ type: 'superseded', generation, reason: this.#lostTo(effect.holder) });
        break;
      }
      case 'unanswered':
        this.#tell({ type: 'claim-unanswered', kind: effect.claim.kind, reason: effect.reason });
        break;
    }
  }

  #request(request: number, answer: Promise<KeyValue | null>): void {
    answer
      .then((found) => this.#entryOf(found))
      .then(
        (entry) => {
          this.#noteAnswer(true, '');
          this.#dispatch({ type: 'answer', request, entry });
        },
        (error: Error) => {
          this.#noteAnswer(false, error.message);
          this.#dispatch({ type: 'no-answer', request, reason: error.message });
        },
      );
  }

  /** Throws when somebody has written something else there: a riddle for a person, not a decision. */
  #entryOf(found: KeyValue | null): Entry {
    if (found === null) return { revision: ABSENT, record: null };
    try {
      return { revision: found.revision, record: parseRecord(found.value) };
    } catch (error) {
      const { key } = this.#options.witness;
      throw new Error(
        `${key} holds no record of colo-agent: ${(error as Error).message}; remove the key if nobody else owns it`,
      );
    }
  }

  /** INVARIANT 4: a generation that this host could forget in a crash isn't acted on. */
  async #won(claim: Claim, generation: number): Promise<void> {
    const asked = this.#claims;
    const { generations, log } = this.#options;
    log.info('claim won', { kind: claim.kind, generation });
    try {
      await generations.win(generation);
    } catch (error) {
      log.error('a generation that was won is not recorded', { error: (error as Error).message });
      if (asked !== this.#claims) return;
      this.#tell({ type: 'claim-unanswered', kind: claim.kind, reason: (error as Error).message });
      setTimeout(() => asked === this.#claims && void this.#won(claim, generation), LOOK_INTERVAL_MS).unref();
      return;
    }
    if (asked === this.#claims) this.#tell({ type: 'claim-won', kind: claim.kind, generation });
  }

  #tell(event: ClaimEvent | Superseded): void {
    this.#onAnswer(event);
  }

  #lostTo(holder: VmRecord): string {
    const { key } = this.#options.witness;
    const { primary, generation, mode, secondary } = holder;
    const standby = mode === 'protected' ? `, with ${secondary} as its standby` : '';
    return `by the witness it runs on ${primary} in generation ${generation}${standby} (${key})`;
  }

  #noteAnswer(answers: boolean, reason: string): void {
    if (answers !== this.#answers) {
      if (answers) this.#options.log.info('the witness answers');
      else this.#options.log.warn('the witness does not answer', { reason });
    }
    this.#answers = answers;
    this.#reason = reason;
  }
}
