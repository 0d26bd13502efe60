/** What both shells have in common: they feed a machine, keep its timer, and can be stopped, killed and made to stand still. */
import { encodeMessage, MessageDecoder } from '../../src/protocol/codec.ts';
import { ProtocolError } from '../../src/protocol/errors.ts';
import type { Machine, StateWord } from '../../src/protocol/machine.ts';
import type { Message } from '../../src/protocol/messages.ts';
import { Heartbeats } from './heartbeats.ts';
import type { Connection } from './network.ts';
import type { World } from './world.ts';

export interface ObservedMachine<Event, Effect> extends Machine<Event, Effect> {
  readonly state: StateWord;
  readonly reason: string;
  readonly generation: number;
  readonly epoch: number;
}

type Without<E> = E extends { nowMs: number } ? Omit<E, 'nowMs'> : never;
export type EventBody<Event> = Without<Event>;

export abstract class Agent<Event extends { nowMs: number; type: string }, Effect extends { type: string }> {
  readonly machine: ObservedMachine<Event, Effect>;
  protected readonly world: World;
  private readonly name: string;
  alive = true;
  finished = false;
  protected link: Connection<Uint8Array> | null = null;
  private readonly side: 0 | 1;
  private stalledUntilMs = 0;
  /** Its event loop alone hangs, no longer than it stands still at all. */
  private hangs = false;
  private heartbeats: Heartbeats | null = null;
  private waiting: (() => void)[] = [];
  private timerAtMs: number | null = null;
  private tickedAtMs = -1;
  private ticks = 0;

  constructor(world: World, side: 0 | 1, machine: ObservedMachine<Event, Effect>) {
    this.world = world;
    this.side = side;
    this.name = side === 0 ? 'P' : 'S';
    this.machine = machine;
  }

  protected abstract perform(effect: Effect): void;

  dispatch(body: EventBody<Event>): void {
    this.whenAwake(() => this.step(body));
  }

  /** The process does nothing while it stands still; what comes meanwhile waits in its sockets and queues. */
  whenAwake(action: () => void): void {
    if (this.world.clock.nowMs < this.stalledUntilMs) this.waiting.push(action);
    else action();
  }

  private step(body: EventBody<Event>): void {
    if (!this.alive || this.finished) return;
    const event = { ...body, nowMs: this.world.clock.nowMs } as unknown as Event;
    this.trace('<', event);
    for (const effect of this.machine.step(event)) {
      if (!this.alive) return;
      this.trace(' ', effect);
      this.perform(effect);
      this.world.effectDone(this.side);
    }
    this.arm();
    this.world.check();
  }

  /** The event loop alone stands still. */
  hang(forMs: number): void {
    this.hangs = this.world.clock.nowMs >= this.stalledUntilMs || this.hangs;
    this.stall(forMs, this.hangs);
  }

  /** The process stands still for a while; what happens meanwhile reaches it afterwards, in order, its own timer first. */
  stall(forMs: number, hangs = false): void {
    const { clock } = this.world;
    this.hangs = hangs;
    this.stalledUntilMs = Math.max(this.stalledUntilMs, clock.nowMs + forMs);
    clock.at(this.stalledUntilMs, () => {
      if (clock.nowMs < this.stalledUntilMs) return; // a later stall has made it longer
      const missed = this.waiting;
      this.waiting = [];
      this.dispatch({ type: 'tick' } as unknown as EventBody<Event>);
      for (const action of missed) action();
    });
  }

  kill(withHost: boolean): void {
    this.alive = false;
    this.link?.kill(this.side, withHost);
    this.heartbeats?.kill(withHost);
  }

  /** From READY to the session's end. */
  protected beginHeartbeats(connection: Connection<'beat'>): void {
    this.endHeartbeats();
    const heartbeats = new Heartbeats(this.world, this.side, connection, {
      standsStill: () => this.world.clock.nowMs < this.stalledUntilMs && !this.hangs,
      onSilent: (reason, heardMs) =>
        this.whenAwake(() => {
          if (this.heartbeats === heartbeats)
            this.dispatch({ type: 'peer-silent', reason, heardMs } as unknown as EventBody<Event>);
        }),
    });
    this.heartbeats = heartbeats;
  }

  protected get hasHeartbeats(): boolean {
    return this.heartbeats !== null;
  }

  protected endHeartbeats(): void {
    this.heartbeats?.end();
    this.heartbeats = null;
  }

  protected takeLink(link: Connection<Uint8Array>): void {
    this.link = link;
    const decoder = new MessageDecoder();
    link.attach(
      this.side,
      (chunk) => this.whenAwake(() => this.receive(link, decoder, chunk)),
      (reason) => this.whenAwake(() => this.lose(link, reason)),
    );
  }

  private lose(link: Connection<Uint8Array>, reason: string): void {
    if (this.link !== link) return;
    this.link = null;
    this.endHeartbeats();
    this.dispatch({ type: 'peer-lost', reason } as unknown as EventBody<Event>);
  }

  protected send(message: Message): void {
    const bytes = encodeMessage(message);
    if (this.world.random.chance(this.world.options.corruption)) bytes[0] = 0;
    const cut = this.world.random.below(bytes.length);
    this.link?.send(this.side, bytes.subarray(0, cut));
    this.link?.send(this.side, bytes.subarray(cut));
  }

  protected closeLink(): void {
    this.endHeartbeats();
    this.link?.close(this.side);
    this.link = null;
  }

  private receive(link: Connection<Uint8Array>, decoder: MessageDecoder, chunk: Uint8Array): void {
    if (this.link !== link) return;
    let messages: Message[] = [];
    try {
      messages = decoder.push(chunk);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.dispatch({ type: 'peer-malformed', reason: error.message } as unknown as EventBody<Event>);
    }
    for (const message of messages) {
      if (this.link === link) this.dispatch({ type: 'message', message } as unknown as EventBody<Event>);
    }
  }

  private trace(mark: string, thing: { type: string }): void {
    if (this.world.tracing && thing.type !== 'tick')
      this.world.trace(`${this.name} ${mark} ${describe(thing)}`);
  }

  /** A machine that wants a tick again and again without doing anything would spin a real processor. */
  private countTick(): void {
    const { nowMs } = this.world.clock;
    this.ticks = nowMs === this.tickedAtMs ? this.ticks + 1 : 0;
    this.tickedAtMs = nowMs;
    if (this.ticks > 10) throw new Error(`${this.name} spins: it wants a tick at ${nowMs} and does nothing`);
  }

  private arm(): void {
    const atMs = this.machine.nextTimepointMs;
    if (atMs === null || atMs === this.timerAtMs) return;
    this.timerAtMs = atMs;
    this.world.clock.at(atMs, () => {
      if (this.timerAtMs !== atMs) return;
      this.timerAtMs = null;
      this.countTick();
      this.dispatch({ type: 'tick' } as unknown as EventBody<Event>);
    });
  }
}

function describe(thing: { type: string }): string {
  const { type, message, ...fields } = thing as { type: string; message?: Message; nowMs?: number };
  delete fields.nowMs;
  if (message === undefined) return `${type} ${JSON.stringify(fields)}`;
  const { generation, epoch, body } = message;
  return `${type} ${generation}/${epoch} ${JSON.stringify(body)}`;
}
