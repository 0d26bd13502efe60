/** src/agent/arbitration.ts as a model: an agent's claims, carried to the world's witness. */
import type { Arbiter, ArbiterEffect, ArbiterEvent, Claim } from '../../src/protocol/arbiter.ts';
import type { ClaimEvent, Superseded } from '../../src/protocol/machine.ts';
import type { World } from './world.ts';

type Bare = ArbiterEvent extends infer E ? (E extends ArbiterEvent ? Omit<E, 'nowMs'> : never) : never;

interface Owner {
  whenAwake(action: () => void): void;
  dispatch(event: ClaimEvent | Superseded): void;
}

const LOOK_INTERVAL_MS = 150;

export class Arbitration {
  private readonly world: World;
  private readonly side: 0 | 1;
  private readonly owner: Owner;
  private readonly arbiter: Arbiter;
  private closed = false;
  /** Of the claim that is wanted now. */
  private claims = 0;

  constructor(world: World, side: 0 | 1, owner: Owner) {
    this.world = world;
    this.side = side;
    this.owner = owner;
    const memory = { seen: world.recorded[side], won: world.wins[side] };
    this.arbiter = world.options.makeArbiter(world.nodes[side], memory);
    if (world.witnessed) this.look();
  }

  ask(claim: Claim): void {
    this.claims++;
    this.step({ type: 'ask', claim, id: this.world.newId() });
  }

  withdraw(): void {
    this.claims++;
    this.step({ type: 'withdraw' });
  }

  /** The process is dead; what it has sent may still arrive. */
  close(): void {
    this.closed = true;
  }

  private look(): void {
    this.world.clock.after(LOOK_INTERVAL_MS, () => {
      if (this.closed) return;
      this.owner.whenAwake(() => this.step({ type: 'look' }));
      this.look();
    });
  }

  private step(event: Bare): void {
    if (this.closed) return;
    const { clock } = this.world;
    for (const effect of this.arbiter.step({ ...event, nowMs: clock.nowMs } as ArbiterEvent))
      this.perform(effect);
    const atMs = this.arbiter.nextTimepointMs;
    if (atMs !== null) clock.at(atMs, () => this.owner.whenAwake(() => this.step({ type: 'tick' })));
  }

  private perform(effect: ArbiterEffect): void {
    switch (effect.type) {
      case 'read':
      case 'transact':
        this.world.etcd.request(this.side, effect, (entry) =>
          this.owner.whenAwake(() => {
            const { request } = effect;
            if (entry !== null) this.step({ type: 'answer', request, entry });
            else this.step({ type: 'no-answer', request, reason: 'no answer' });
          }),
        );
        break;
      case 'won':
        this.won(effect.claim.kind, effect.generation);
        break;
      case 'lost': {
        const reason = `it runs on ${effect.holder.primary}`;
        this.tell({ type: 'claim-lost', kind: effect.claim.kind, reason });
        break;
      }
      case 'superseded': {
        const { generation, primary } = effect.holder;
        this.tell({ type: 'superseded', generation, reason: `it runs on ${primary}` });
        break;
      }
      case 'unanswered':
        this.tell({ type: 'claim-unanswered', kind: effect.claim.kind, reason: effect.reason });
        break;
    }
  }

  /** Recorded on the host before anybody acts on it. */
  private won(kind: Claim['kind'], generation: number): void {
    const asked = this.claims;
    this.world.clock.after(this.world.random.between(0.1, 2), () => {
      if (this.closed) return;
      this.world.win(this.side, generation);
      if (asked === this.claims) this.owner.dispatch({ type: 'claim-won', kind, generation });
    });
  }

  private tell(event: ClaimEvent | Superseded): void {
    // The machine is in the middle of a step when it asks; answers come after it.
    this.world.clock.after(0, () => !this.closed && this.owner.dispatch(event));
  }
}
