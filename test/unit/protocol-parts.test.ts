import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { DEFAULT_TIMINGS, type PrimaryOptions } from '../../src/protocol/machine.ts';
import { Outstanding } from '../../src/protocol/outstanding.ts';
import { PrimaryContext } from '../../src/protocol/primary-context.ts';
import { VmControl } from '../../src/protocol/primary-vm.ts';
import { nextCheckpointMs, type Pace } from '../../src/protocol/schedule.ts';

const timings = DEFAULT_TIMINGS; // interval 100, min 5, share 0.2
const pace: Pace = {
  lastStartedMs: 1000,
  lastResumedMs: 1002,
  lastPauseMs: 2,
  outputHeld: false,
  urgency: 'none',
  notBeforeMs: 0,
};

describe('when the next checkpoint is due', () => {
  test.each<[string, Partial<Pace>, number]>([
    ['the interval after the last one began', {}, 1100],
    ['earlier when output waits, but not before the guest has had its share', { outputHeld: true }, 1010],
    ['and not before minInterval', { outputHeld: true, lastPauseMs: 0.5 }, 1007],
    ['held output never makes it later', { outputHeld: true, lastStartedMs: 905, lastPauseMs: 0 }, 1005],
    ['soon when asked for: only the share counts', { urgency: 'soon' }, 1010],
    ['now when the gate is nearly full', { urgency: 'now', lastPauseMs: 500 }, 1002],
    ['a long pause makes the epoch longer than the interval', { lastPauseMs: 50 }, 1202],
    ['not before a failed attempt is an interval old', { urgency: 'now', notBeforeMs: 1050 }, 1050],
  ])('%s', (_, change, expected) => {
    expect(nextCheckpointMs(timings, { ...pace, ...change })).toBe(expected);
  });

  test('the guest stands for no more than its share, unless the gate is nearly full', () => {
    fc.assert(
      fc.property(
        fc.nat(1000),
        fc.boolean(),
        fc.constantFrom('none' as const, 'soon' as const),
        (pauseMs, outputHeld, urgency) => {
          const lastResumedMs = 1000 + pauseMs;
          const next = nextCheckpointMs(timings, {
            ...pace,
            lastPauseMs: pauseMs,
            lastResumedMs,
            outputHeld,
            urgency,
          });
          expect(pauseMs).toBeLessThanOrEqual(timings.pauseShareMax * (next - 1000) + 1e-6);
        },
      ),
    );
  });
});

describe('the pause that the share goes by', () => {
  const context = new PrimaryContext({ foundClosedGate: false, generation: 1 } as PrimaryOptions);
  const vm = new VmControl(context);

  function pause(stoodMs?: number): number {
    context.nowMs = 1000;
    vm.stopAndSave(1);
    vm.onStopped(true);
    vm.resume();
    for (const step of ['stop', 'save'] as const) context.steps.end(step, 1);
    vm.resume();
    context.steps.end('resume');
    context.nowMs = 1006;
    vm.onResumed(stoodMs);
    return vm.pauseMs;
  }

  test('is that of QEMU, which tells for how long the guest stood', () => expect(pause(3)).toBe(3));
  test('is all of it when QEMU doesn’t tell', () => expect(pause()).toBe(6));
  test('is no longer than what the agent saw, whatever the wall clock did', () => {
    expect(pause(60_000)).toBe(6);
    expect(pause(-60_000)).toBe(0);
  });
});

describe('outstanding steps', () => {
  test('an answer that nobody waits for is a programming error', () => {
    const steps = new Outstanding<'capture' | 'save'>();
    steps.begin('capture', 2);
    expect(() => steps.end('save')).toThrow('invalid transition [waiting for capture 2 -> save]');
    expect(() => steps.end('capture', 3)).toThrow('invalid transition [waiting for capture 2 -> capture 3]');
    expect(() => steps.begin('capture')).toThrow('invalid transition [capture in progress -> capture again]');
    steps.end('capture', 2);
    expect(() => steps.end('capture', 2)).toThrow('invalid transition [waiting for nothing -> capture 2]');
  });
});
