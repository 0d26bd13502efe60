/** What the golden conversations don't say: any message from a peer is survived, and no event of the shell is taken that can't be. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  DEFAULT_TIMINGS,
  type PrimaryEffect,
  type PrimaryEvent,
  type SecondaryEvent,
} from '../../src/protocol/machine.ts';
import type { Body, Message } from '../../src/protocol/messages.ts';
import { PrimaryMachine } from '../../src/protocol/primary.ts';
import { SecondaryMachine } from '../../src/protocol/secondary.ts';

const VM_ID = '0123456789abcdef0123456789abcdef';
const common = { vmId: VM_ID, timings: DEFAULT_TIMINGS };

const newPrimary = (foundClosedGate = false): PrimaryMachine =>
  new PrimaryMachine({
    ...common,
    mode: 'pipelined',
    connections: 1,
    description: {},
    generation: 1,
    copiesDisks: false,
    node: 'north',
    arbitration: 'none',
    tookOver: false,
    forced: false,
    tookPart: false,
    foundClosedGate,
  });
const newSecondary = (): SecondaryMachine =>
  new SecondaryMachine({ ...common, generation: 0, node: 'south', failover: 'granted' });

type Bare<E> = E extends { nowMs: number } ? Omit<E, 'nowMs'> : never;

function feed(machine: PrimaryMachine, ...events: Bare<PrimaryEvent>[]): PrimaryEffect[] {
  return events.flatMap((event) => machine.step({ ...event, nowMs: 0 } as PrimaryEvent));
}

const message = (body: Body, epoch = 0, generation = 1): Message => ({
  vmId: VM_ID,
  generation,
  epoch,
  body,
});
const received = (body: Body, epoch = 0) => ({ type: 'message' as const, message: message(body, epoch) });

const HELLO = {
  type: 'hello',
  description: {},
  mode: 'pipelined',
  connections: 1,
  lineage: VM_ID,
  node: 'north',
  arbitration: 'none',
} as const satisfies Body;

/** From the start to every place that matters, one event at a time. */
const PRIMARY_PATH: Bare<PrimaryEvent>[] = [
  { type: 'start' },
  { type: 'peer-connected', lineage: VM_ID },
  received({ type: 'ready', bulkToken: VM_ID, lineages: [], node: 'south' }),
  { type: 'bulk-connected' },
  { type: 'gate-installed' },
  { type: 'protected' },
  received({ type: 'suspended' }, 1),
  { type: 'synced' },
  { type: 'stopped', epoch: 1, wasRunning: true },
  { type: 'captured', epoch: 1, pages: 1 },
  { type: 'saved', epoch: 1, vmstateBytes: 1 },
  { type: 'resumed' },
  { type: 'transmitted', epoch: 1 },
  received({ type: 'received' }, 1),
  received({ type: 'suspended' }, 2),
  received({ type: 'loaded' }, 1),
];

/** From there on, until HANDOVER has been sent. */
const DRILL_PATH: Bare<PrimaryEvent>[] = [
  { type: 'command', command: 'drill' },
  { type: 'stopped', epoch: 2, wasRunning: true },
  { type: 'captured', epoch: 2, pages: 1 },
  { type: 'saved', epoch: 2, vmstateBytes: 1 },
  { type: 'resumed' },
  { type: 'transmitted', epoch: 2 },
  received({ type: 'received' }, 2),
  received({ type: 'loaded' }, 2),
];

const SECONDARY_PATH: Bare<SecondaryEvent>[] = [
  { type: 'start' },
  { type: 'peer-connected' },
  received({ ...HELLO, mode: 'strict' }),
  { type: 'compared', difference: null },
  { type: 'session-opened', bulkToken: VM_ID, lineages: [] },
  received({ type: 'new' }, 1),
  { type: 'staged', epoch: 0, pages: 1, vmstateBytes: 0 },
  received({ type: 'send', pages: 1, vmstateBytes: 1 }, 1),
  { type: 'staged', epoch: 1, pages: 1, vmstateBytes: 1 },
  { type: 'flushed', epoch: 1 },
  { type: 'loaded', epoch: 1 },
  { type: 'peer-lost', reason: 'reset' },
  { type: 'disks-settled' },
  { type: 'promoted' },
  { type: 'peer-connected' },
];

const body: fc.Arbitrary<Body> = fc.oneof(
  fc.constantFrom('new', 'suspended', 'received', 'loaded', 'handover').map((type) => ({ type }) as Body),
  fc.constant<Body>({ ...HELLO, connections: 2 }),
  fc.constant<Body>({ type: 'ready', bulkToken: VM_ID, lineages: [], node: 'south' }),
  fc.constant<Body>({ type: 'took-over', settledMs: 1, claimedMs: null, runsMs: 2 }),
  fc.record({ type: fc.constant('send' as const), pages: fc.nat(3), vmstateBytes: fc.nat(3) }),
  fc.constantFrom('shutdown', 'detach', 'qemu-lost').map((reason) => ({ type: 'bye', reason }) as Body),
  fc.record({
    type: fc.constant('error' as const),
    code: fc.constantFrom('stale-generation', 'incompatible', 'handover-refused', 'x'),
    message: fc.string(),
    generation: fc.constantFrom(0, 1, 2, Number.MAX_SAFE_INTEGER),
    role: fc.constantFrom('standby' as const, 'running' as const),
  }),
);
const anyMessage = fc.record({
  vmId: fc.constantFrom(VM_ID, VM_ID, VM_ID, 'f'.repeat(32)),
  generation: fc.constantFrom(1, 1, 1, 2, Number.MAX_SAFE_INTEGER),
  epoch: fc.nat(3),
  body,
});

describe('any message, at any moment', () => {
  test('is survived by the primary, which gives the VM and its network back or goes on', () => {
    fc.assert(
      fc.property(
        fc.nat(PRIMARY_PATH.length),
        fc.array(anyMessage, { minLength: 1, maxLength: 4 }),
        (steps, messages) => {
          const machine = newPrimary();
          const done = feed(machine, ...PRIMARY_PATH.slice(0, steps));
          const effects = messages.flatMap((each) => feed(machine, { type: 'message', message: each }));
          // INVARIANT 1: a release has its RECEIVED, whatever else is claimed.
          for (const effect of effects) {
            if (effect.type === 'release-output') expect(sent(done)).toContain(effect.epoch);
          }
          if (effects.some((effect) => effect.type === 'hand-over')) expect(machine.state).toBe('EXPOSED');
        },
      ),
      { numRuns: 3000 },
    );
  });

  test('resumes no VM that was handed over, unless it says that the standby refuses', () => {
    fc.assert(
      fc.property(fc.array(anyMessage, { minLength: 1, maxLength: 4 }), (messages) => {
        const machine = newPrimary();
        feed(machine, ...PRIMARY_PATH, ...DRILL_PATH);
        expect(machine.step({ type: 'tick', nowMs: 5 })).toEqual([{ type: 'stand-still' }]);
        machine.step({ type: 'stood', wasRunning: true, nowMs: 5 });
        const effects = messages.flatMap((each) =>
          machine.step({ type: 'message', message: each, nowMs: 5 }),
        );
        const refused = messages.some(
          ({ vmId, body: said }) =>
            vmId === VM_ID && said.type === 'error' && said.code === 'handover-refused',
        );
        const goesOn = effects.filter(({ type }) => type === 'resume' || type === 'hand-over');
        if (!refused) expect(goesOn).toEqual([]);
      }),
      { numRuns: 2000 },
    );
  });

  test('is survived by the secondary, which never runs its VM because of one', () => {
    fc.assert(
      fc.property(
        fc.nat(SECONDARY_PATH.length),
        fc.array(anyMessage, { minLength: 1, maxLength: 4 }),
        (steps, messages) => {
          const machine = newSecondary();
          for (const event of SECONDARY_PATH.slice(0, steps))
            machine.step({ ...event, nowMs: 0 } as SecondaryEvent);
          const before = machine.epoch;
          for (const each of messages) {
            const effects = machine.step({ type: 'message', message: each, nowMs: 0 });
            const { body: said } = each;
            const lost = said.type === 'handover' || (said.type === 'bye' && said.reason === 'qemu-lost');
            if (!lost) expect(effects.filter(({ type }) => type === 'promote')).toEqual([]);
            if (effects.some(({ type }) => type === 'flush')) expect(machine.epoch).toBeGreaterThan(before);
          }
        },
      ),
      { numRuns: 3000 },
    );
  });
});

function sent(effects: PrimaryEffect[]): number[] {
  return effects.flatMap((effect) => (effect.type === 'transmit' ? [effect.epoch] : []));
}

describe('events that the shell cannot rightly send', () => {
  test.each<[string, number, Bare<PrimaryEvent>]>([
    ['a second start', 1, { type: 'start' }],
    ['a peer that nobody called', 0, { type: 'peer-connected', lineage: VM_ID }],
    ['a second peer', 2, { type: 'peer-connected', lineage: VM_ID }],
    ['a gate before it was asked for', 3, { type: 'gate-installed' }],
    ['an answer to another epoch', 8, { type: 'stopped', epoch: 2, wasRunning: true }],
    ['a second answer', 9, { type: 'stopped', epoch: 1, wasRunning: true }],
    ['a failure of what is not under way', 3, { type: 'step-failed', step: 'capture', reason: '' }],
    ['a hand-over that was not asked for', 8, { type: 'handed-over' }],
  ])('primary: %s', (_, steps, event) => {
    const machine = newPrimary();
    feed(machine, ...PRIMARY_PATH.slice(0, steps));
    expect(() => feed(machine, event)).toThrow(/^invalid transition \[.* -> .*\]$/);
  });

  test.each<[string, number, Bare<SecondaryEvent>]>([
    ['a second start', 1, { type: 'start' }],
    ['a second peer', 2, { type: 'peer-connected' }],
    ['an answer that nobody waits for', 2, { type: 'compared', difference: null }],
    ['the first copy twice', 7, { type: 'staged', epoch: 0, pages: 0, vmstateBytes: 0 }],
    ['an epoch that is not open', 7, { type: 'staged', epoch: 2, pages: 0, vmstateBytes: 0 }],
    ['an epoch twice', 9, { type: 'staged', epoch: 1, pages: 1, vmstateBytes: 1 }],
    ['a load before the flush', 9, { type: 'loaded', epoch: 1 }],
    ['disks that nobody wanted settled', 11, { type: 'disks-settled' }],
    ['a promotion that was not asked for', 11, { type: 'promoted' }],
  ])('secondary: %s', (_, steps, event) => {
    const machine = newSecondary();
    for (const each of SECONDARY_PATH.slice(0, steps)) machine.step({ ...each, nowMs: 0 } as SecondaryEvent);
    expect(() => machine.step({ ...event, nowMs: 0 } as SecondaryEvent)).toThrow(
      /^invalid transition \[.* -> .*\]$/,
    );
  });
});

describe('what status shows', () => {
  test('the primary', () => {
    const machine = newPrimary();
    feed(machine, ...PRIMARY_PATH);
    const { state, generation, epoch, lastCommittedAtMs } = machine;
    expect({ state, generation, epoch, lastCommittedAtMs }).toEqual({
      state: 'PROTECTED',
      generation: 1,
      epoch: 1,
      lastCommittedAtMs: 0,
    });
  });

  test('the secondary, before and after a take-over', () => {
    const machine = newSecondary();
    for (const event of SECONDARY_PATH.slice(0, 11)) machine.step({ ...event, nowMs: 0 } as SecondaryEvent);
    expect([machine.state, machine.generation, machine.epoch]).toEqual(['STANDBY', 1, 1]);
    for (const event of SECONDARY_PATH.slice(11)) machine.step({ ...event, nowMs: 0 } as SecondaryEvent);
    expect([machine.state, machine.generation, machine.epoch]).toEqual(['RUNNING', 2, 1]);
  });

  test('after it has finished a machine is silent', () => {
    const machine = newPrimary();
    feed(machine, ...PRIMARY_PATH, { type: 'vm-lost', reason: 'gone' });
    expect(machine.nextTimepointMs).toBeNull();
    expect(feed(machine, { type: 'start' }, { type: 'handed-over' }, { type: 'tick' })).toEqual([]);
  });
});
