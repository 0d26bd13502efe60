/** A host as the model sees it: a VM, its gate, and an agent, which is one of the real machines with the real arbiter. What the model has no steps for is answered at once. */
import {
  ABSENT_REVISION,
  Arbiter,
  type ArbiterEffect,
  type ArbiterEvent,
  type Claim,
  type Entry,
} from '../../src/protocol/arbiter.ts';
import type { Machine, Timings } from '../../src/protocol/machine.ts';
import type { Message } from '../../src/protocol/messages.ts';
import type { EventBody } from './agent.ts';
import type { Random } from './clock.ts';

type Request = Extract<ArbiterEffect, { type: 'read' | 'transact' }>;
export type Transaction = Extract<ArbiterEffect, { type: 'transact' }>;

export const NODES = ['north', 'south'] as const;
export const TIMINGS: Timings = {
  intervalMs: 40,
  minIntervalMs: 5,
  pauseShareMax: 0.2,
  heartbeatMs: 50,
  peerTimeoutMs: 300,
  stallTimeoutMs: 10_000,
  reconnectMs: 60,
};
const WAITS_MAX = 10;

/** The code does something else than the model. */
export class Difference extends Error {}

export function differ(text: string): never {
  throw new Difference(text);
}

export class Witness {
  entry: Entry = { revision: ABSENT_REVISION, record: null };

  execute({ expected, record }: Transaction): void {
    if (expected !== this.entry.revision) differ(`a transaction on ${expected} at ${this.entry.revision}`);
    this.entry = { revision: String(Number(expected) + 1), record };
  }
}

export interface HostState {
  vm: 'none' | 'paused' | 'runs' | 'stands';
  gate: 'closed' | 'holds' | 'open';
  /** Something of an agent's lies under the VM's NICs. */
  filters: boolean;
  /** The newest generation that is fsynced. */
  recorded: number;
  /** The newest of those that it has won itself. */
  won: number;
  /** That its VM is in, in the model's count. */
  epoch: number;
  /** Of agents that are dead, and of claims that others have taken the place of. */
  late: Transaction[];
}

/** What the machines share with the replay. */
export interface Surroundings {
  readonly witness: Witness;
  readonly random: Random;
  /** Puts a message on its way to the other host. */
  send(from: 0 | 1, message: Message): void;
  /** This side has no connection any more. */
  unlink(side: 0 | 1): void;
  newId(): string;
}

export abstract class ModelAgent<Event extends { nowMs: number }, Effect extends { type: string }> {
  readonly side: 0 | 1;
  protected readonly machine: Machine<Event, Effect>;
  protected readonly host: HostState;
  protected readonly world: Surroundings;
  private readonly arbiter: Arbiter;
  private nowMs = 0;
  private answers: EventBody<Event>[] = [];
  private busy = false;
  /** Under way to the witness, or at it. */
  private request: Request | null = null;
  /** What the witness has made of `request`, and not told yet. */
  private executed: Entry | null = null;

  constructor(side: 0 | 1, machine: Machine<Event, Effect>, host: HostState, world: Surroundings) {
    this.side = side;
    this.machine = machine;
    this.host = host;
    this.world = world;
    this.arbiter = new Arbiter(NODES[side], { seen: host.recorded, won: host.won });
  }

  protected abstract perform(effect: Effect): void;

  /** One event, and every answer that nobody has to wait for. */
  step(body: EventBody<Event>): void {
    this.answers.push(body);
    if (this.busy) return;
    this.busy = true;
    for (let next = this.answers.shift(); next !== undefined; next = this.answers.shift()) {
      const event = { ...next, nowMs: this.nowMs } as unknown as Event;
      for (const effect of this.machine.step(event)) this.perform(effect);
    }
    this.busy = false;
  }

  /** Lets time pass here until `done`. */
  wait(what: string, done: () => boolean): void {
    for (let waits = 0; !done(); waits++) {
      const atMs = this.machine.nextTimepointMs;
      if (atMs === null || waits === WAITS_MAX) differ(`${NODES[this.side]} doesn't come to ${what}`);
      this.nowMs = Math.max(this.nowMs, atMs);
      this.step({ type: 'tick' } as unknown as EventBody<Event>);
    }
  }

  get asks(): boolean {
    return this.request !== null;
  }

  // --- the witness -----------------------------------------------------------------------------------------------------------------

  protected claim(claim: Claim): void {
    this.leaveUnderWay();
    this.decide({ type: 'ask', claim, id: this.world.newId() });
  }

  protected withdraw(): void {
    this.leaveUnderWay();
    this.decide({ type: 'withdraw' });
  }

  /** What it has sent may still arrive, when it is dead or wants something else. */
  leaveUnderWay(): void {
    if (this.request?.type === 'transact' && this.executed === null) this.host.late.push(this.request);
    this.request = null;
    this.executed = null;
  }

  /** It asks and is answered until its claim is settled, or a transaction is under way that would succeed now. */
  reach(): void {
    while (this.request !== null && !this.isCurrent(this.request)) {
      const { request } = this;
      if (this.world.random.chance(0.3)) this.lose();
      else this.hear(request, this.world.witness.entry);
    }
  }

  execute(): void {
    const { request } = this;
    if (request?.type !== 'transact' || this.executed !== null)
      differ(`${NODES[this.side]} has asked for nothing`);
    this.world.witness.execute(request);
    this.executed = this.world.witness.entry;
  }

  /** It learns that it has won: at once, or the answer is lost and it asks again. */
  win(): void {
    const { request, executed, world } = this;
    if (request === null || executed === null) differ(`${NODES[this.side]} has won nothing`);
    const lost = executed === world.witness.entry && world.random.chance(0.5);
    if (lost) this.lose();
    this.executed = null;
    this.hear(this.request ?? request, executed);
  }

  private isCurrent(request: Request): boolean {
    return request.type === 'transact' && request.expected === this.world.witness.entry.revision;
  }

  /** No answer comes, and it tries the same again. */
  private lose(): void {
    const { request } = this.request ?? differ('nothing to lose');
    this.decide({ type: 'no-answer', request, reason: 'no answer' });
    const atMs = this.arbiter.nextTimepointMs;
    if (atMs === null) differ(`${NODES[this.side]} doesn't ask again`);
    this.nowMs = Math.max(this.nowMs, atMs);
    this.decide({ type: 'tick' });
  }

  private hear({ request }: Request, entry: Entry): void {
    this.request = null;
    this.decide({ type: 'answer', request, entry });
  }

  private decide(
    event: ArbiterEvent extends infer E ? (E extends ArbiterEvent ? Omit<E, 'nowMs'> : never) : never,
  ): void {
    for (const effect of this.arbiter.step({ ...event, nowMs: this.nowMs } as ArbiterEvent))
      this.carry(effect);
  }

  private carry(effect: ArbiterEffect): void {
    const tell = (body: object) => this.step(body as EventBody<Event>);
    switch (effect.type) {
      case 'read':
      case 'transact':
        this.request = effect;
        break;
      case 'won':
        this.host.recorded = Math.max(this.host.recorded, effect.generation);
        this.host.won = Math.max(this.host.won, effect.generation);
        tell({ type: 'claim-won', kind: effect.claim.kind, generation: effect.generation });
        break;
      case 'lost':
        tell({ type: 'claim-lost', kind: effect.claim.kind, reason: `it runs on ${effect.holder.primary}` });
        break;
      case 'superseded':
        break; // nobody looks here
      case 'unanswered':
        tell({ type: 'claim-unanswered', kind: effect.claim.kind, reason: effect.reason });
        break;
    }
  }
}
