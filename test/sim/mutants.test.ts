/** The world has teeth: each of these machines breaks one invariant, and some seed shows it. */
import { describe, expect, test } from 'vitest';
import { Arbiter, type ArbiterEffect, type ArbiterEvent, type VmRecord } from '../../src/protocol/arbiter.ts';
import type {
  PrimaryEffect,
  PrimaryEvent,
  PrimaryOptions,
  SecondaryEffect,
  SecondaryEvent,
} from '../../src/protocol/machine.ts';
import { PrimaryMachine } from '../../src/protocol/primary.ts';
import { SecondaryMachine } from '../../src/protocol/secondary.ts';
import { cutLink, drill, live } from './faults.ts';
import { simulate, worldOf } from './simulate.ts';
import { InvariantViolation, type World, type WorldOptions } from './world.ts';

const SEEDS_MAX = 400;

type Twist<Event, Effect> = (effects: Effect[], event: Event) => Effect[];

function mutantOf(twist: Twist<PrimaryEvent, PrimaryEffect>): typeof PrimaryMachine {
  return class Mutant extends PrimaryMachine {
    override step(event: PrimaryEvent): PrimaryEffect[] {
      return twist(super.step(event), event);
    }
  };
}

function primary(twist: Twist<PrimaryEvent, PrimaryEffect>): Partial<WorldOptions> {
  const Mutant = mutantOf(twist);
  return { makePrimary: (options) => new Mutant(options) };
}

function secondary(twist: Twist<SecondaryEvent, SecondaryEffect>): Partial<WorldOptions> {
  class Mutant extends SecondaryMachine {
    override step(event: SecondaryEvent): SecondaryEffect[] {
      return twist(super.step(event), event);
    }
  }
  return { makeSecondary: (options) => new Mutant(options) };
}

const without =
  <Effect extends { type: string }>(type: Effect['type']) =>
  (effects: Effect[]) =>
    effects.filter((effect) => effect.type !== type);

/** The invariant that the first world in which the mutant is caught names. */
function caught(
  change: Partial<WorldOptions>,
  ofSeed: (seed: number) => Partial<WorldOptions> = () => ({}),
  scenario: (world: World) => void = live,
): number | null {
  for (let seed = 0; seed < SEEDS_MAX; seed++) {
    try {
      simulate(worldOf(seed, { stepFailures: 0.03, corruption: 0, ...change, ...ofSeed(seed) }), scenario);
    } catch (error) {
      if (error instanceof InvariantViolation) return error.invariant;
    }
  }
  return null;
}

describe('a machine is caught that', () => {
  test('releases output when the checkpoint is sent', () => {
    const mutant = primary((effects) =>
      effects.flatMap((effect): PrimaryEffect[] =>
        effect.type === 'transmit' ? [effect, { type: 'release-output', epoch: effect.epoch }] : [effect],
      ),
    );
    expect(caught(mutant)).toBe(1);
  });

  test('confirms a checkpoint before the one before is loaded', () => {
    const mutant = secondary((effects) =>
      effects.flatMap((effect): SecondaryEffect[] =>
        effect.type === 'load' ? [effect, { ...effect, type: 'flush' }] : [effect],
      ),
    );
    expect([2, 6]).toContain(caught(mutant));
  });

  test('forgets the pages of a checkpoint that failed', () => {
    expect(caught(primary(without('abandon')))).toBe(3);
  });

  test("takes a disk's writes for the standby's when they are only received", () => {
    const mutant = primary((effects) =>
      effects.flatMap((effect): PrimaryEffect[] =>
        effect.type === 'release-output'
          ? [effect, { type: 'confirm-disks', epoch: effect.epoch }]
          : [effect],
      ),
    );
    expect(caught(mutant)).toBe(3);
  });

  test("believes that every standby's disk is its own copy", () => {
    const mutant: Partial<WorldOptions> = {
      makePrimary: (options) => {
        let confirmed = '';
        const Mutant = mutantOf((effects) =>
          effects.map((effect) => {
            if (effect.type !== 'sync-disks') return effect;
            const told = confirmed;
            confirmed = effect.lineage;
            return { ...effect, lineages: [told] };
          }),
        );
        return new Mutant(options);
      },
    };
    const crash = (seed: number) => ({ side: 1 as const, effects: 20 + seed, victim: 'S-host' as const });
    expect(caught(mutant, (seed) => ({ crash: crash(seed) }))).toBe(3);
  });

  test('captures before the VM stands', () => {
    const mutant = primary((effects) =>
      effects
        .filter((effect) => effect.type !== 'capture')
        .flatMap((effect): PrimaryEffect[] =>
          effect.type === 'stop-and-save' ? [effect, { type: 'capture', epoch: effect.epoch }] : [effect],
        ),
    );
    expect(caught(mutant)).toBe(5);
  });

  test('takes over before the load has ended', () => {
    const mutant = secondary((effects) =>
      effects.flatMap((effect): SecondaryEffect[] => {
        const takesOver = effect.type === 'state' && effect.state === 'TAKING-OVER';
        return takesOver && !effects.some(({ type }) => type === 'promote')
          ? [effect, { type: 'promote', generation: 9 }]
          : [effect];
      }),
    );
    expect(caught({ ...mutant, failover: 'granted' })).toBe(6);
  });

  test('takes over with a half copied RAM', () => {
    const mutant = secondary((effects, event) =>
      event.type === 'peer-lost' &&
      effects.some((effect) => effect.type === 'state' && effect.state === 'BLOCKED')
        ? [...effects, { type: 'promote', generation: 9 }]
        : effects,
    );
    expect(caught({ ...mutant, failover: 'granted' })).toBe(2);
  });

  test('goes on with RAM in which the scrub has found a difference', () => {
    class Mutant extends SecondaryMachine {
      override step(event: SecondaryEvent): SecondaryEffect[] {
        return super.step(event.type === 'ram-differs' ? { ...event, type: 'flushed' } : event);
      }
    }
    expect([2, 3]).toContain(caught({ makeSecondary: (options) => new Mutant(options) }));
  });

  test('loads the device state before the RAM', () => {
    const mutant = secondary((effects) =>
      effects.flatMap((effect): SecondaryEffect[] =>
        effect.type === 'flush' ? [{ ...effect, type: 'load' }, effect] : [effect],
      ),
    );
    expect([2, 6]).toContain(caught(mutant));
  });

  test('opens the gate of an earlier agent by itself', () => {
    class Mutant extends PrimaryMachine {
      private opened = false;

      override step(event: PrimaryEvent): PrimaryEffect[] {
        // Its own hand-over's answer is none of the machine's business.
        if (event.type === 'handed-over' && !this.opened) {
          this.opened = true;
          return [];
        }
        return event.type === 'start' ? [...super.step(event), { type: 'hand-over' }] : super.step(event);
      }
    }
    const mutant: Partial<WorldOptions> = {
      makePrimary: (options) => (options.foundClosedGate ? new Mutant(options) : new PrimaryMachine(options)),
    };
    expect(caught(mutant)).toBe(4);
  });

  test('leaves the VM standing when the peer is lost', () => {
    const mutant = primary((effects) =>
      effects.some((effect) => effect.type === 'disconnect-bulk' || effect.type === 'abandon')
        ? without<PrimaryEffect>('resume')(effects)
        : effects,
    );
    expect(caught(mutant)).toBe(7);
  });
});

/** Every world has a witness, and many faults of it. */
const WITNESSED: Partial<WorldOptions> = { failover: 'claimed', witnessFaults: 0.4, stepFailures: 0 };

const STRANGER: VmRecord = {
  format: 1,
  generation: 9,
  mode: 'alone',
  primary: 'west',
  secondary: null,
  claim: '0'.repeat(32),
};

function arbiter(twist: Twist<ArbiterEvent, ArbiterEffect>): Partial<WorldOptions> {
  class Mutant extends Arbiter {
    override step(event: ArbiterEvent): ArbiterEffect[] {
      return twist(super.step(event), event);
    }
  }
  return { ...WITNESSED, makeArbiter: (node, memory) => new Mutant(node, memory) };
}

describe('with a witness a machine is caught that', () => {
  test('takes over without having won', () => {
    const mutant = secondary((effects, event) =>
      event.type === 'disks-settled' && !effects.some(({ type }) => type === 'promote')
        ? [...effects, { type: 'promote', generation: 9 }]
        : effects,
    );
    expect(caught({ ...WITNESSED, ...mutant })).toBe(4);
  });

  test('claims before it knows that it can run', () => {
    class Failing extends SecondaryMachine {
      override step(event: SecondaryEvent): SecondaryEffect[] {
        const lost = { type: 'settle-failed', reason: 'a write was lost', nowMs: event.nowMs } as const;
        return super.step(event.type === 'disks-settled' ? lost : event);
      }
    }
    class Mutant extends Failing {
      override step(event: SecondaryEvent): SecondaryEffect[] {
        return super.step(event).flatMap((effect): SecondaryEffect[] => {
          if (effect.type !== 'state' || effect.state !== 'TAKING-OVER') return [effect];
          const claim = { kind: 'take-over', generation: this.generation, primary: 'north' } as const;
          return [effect, { type: 'claim', claim }];
        });
      }
    }
    expect(caught({ ...WITNESSED, makeSecondary: (options) => new Failing(options) })).toBeNull();
    expect(caught({ ...WITNESSED, makeSecondary: (options) => new Mutant(options) })).toBe(7);
  });

  test('opens its gate before it has won a generation alone', () => {
    const mutant = primary((effects) =>
      effects.flatMap((effect): PrimaryEffect[] =>
        effect.type === 'claim' && effect.claim.kind === 'alone' ? [effect, { type: 'hand-over' }] : [effect],
      ),
    );
    expect(caught({ ...WITNESSED, ...mutant })).toBe(4);
  });

  test('takes an answer that was lost for a yes', () => {
    const mutant = arbiter((effects) =>
      effects.map((effect) =>
        effect.type === 'unanswered' ? { type: 'won', claim: effect.claim, generation: 9 } : effect,
      ),
    );
    expect(caught(mutant)).toBe(4);
  });

  test('takes an answer that was lost for a no', () => {
    const mutant = arbiter((effects) =>
      effects.map((effect) =>
        effect.type === 'unanswered' ? { type: 'lost', claim: effect.claim, holder: STRANGER } : effect,
      ),
    );
    expect(caught(mutant)).toBe(7);
  });
});

/** The link is cut somewhere in the middle of a planned failover. */
function drillAndCut(world: World): void {
  world.calm = true;
  world.runUntil(() => world.primary?.machine.state === 'PROTECTED', 20_000);
  drill(world);
  world.clock.after(world.random.between(0, 60), () => cutLink(world));
  world.runUntil(() => false, 10_000);
}

const DRILLED: Partial<WorldOptions> = { stepFailures: 0, witnessFaults: 0 };

describe('in a drill a machine is caught that', () => {
  test.each(['claimed', 'ordered'] as const)('resumes without having won (%s)', (failover) => {
    class Mutant extends PrimaryMachine {
      private handedOver = false;

      override step(event: PrimaryEvent): PrimaryEffect[] {
        if (this.handedOver && ['resumed', 'handed-over'].includes(event.type)) return [];
        const effects = super.step(event);
        this.handedOver ||= effects.some(
          (effect) => effect.type === 'send' && effect.message.body.type === 'handover',
        );
        return this.handedOver && event.type === 'peer-silent'
          ? [...effects, { type: 'resume' }, { type: 'hand-over' }]
          : effects;
      }
    }
    const mutant = { makePrimary: (options: PrimaryOptions) => new Mutant(options) };
    expect(caught({ ...DRILLED, ...mutant, failover }, undefined, drillAndCut)).toBe(4);
  });

  test('leaves its VM before anybody runs it', () => {
    const mutant = primary((effects) =>
      effects.flatMap((effect): PrimaryEffect[] =>
        effect.type === 'send' && effect.message.body.type === 'handover'
          ? [effect, { type: 'leave-vm' }]
          : [effect],
      ),
    );
    expect(caught({ ...DRILLED, ...mutant, failover: 'claimed' }, undefined, drillAndCut)).toBe(7);
  });

  test('refuses and takes over all the same', () => {
    const mutant = secondary((effects) =>
      effects.map((effect) => {
        if (effect.type !== 'send' || effect.message.body.type !== 'took-over') return effect;
        const { vmId } = effect.message;
        const body = { type: 'error', code: 'handover-refused', message: 'no' } as const;
        return { ...effect, message: { vmId, generation: 1, epoch: 0, body } };
      }),
    );
    expect(caught({ ...DRILLED, ...mutant, failover: 'ordered' }, undefined, drillAndCut)).toBe(4);
  });
});
