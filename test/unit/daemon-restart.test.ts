import { describe, expect, test } from 'vitest';
import { DELAY_MS_MAX, type ProcessExit, ProcessMachine } from '../../src/daemon/restart.ts';

const CRASH: ProcessExit = { code: null, outcome: null, reason: 'SIGKILL' };

function started(): ProcessMachine {
  const machine = new ProcessMachine();
  expect(machine.step({ type: 'start', nowMs: 0, evenStopped: false })).toEqual([{ type: 'spawn' }]);
  return machine;
}

function end(machine: ProcessMachine, exit: Partial<ProcessExit>, nowMs = 0) {
  return machine.step({ type: 'ended', nowMs, exit: { ...CRASH, ...exit } });
}

const START = { type: 'start', nowMs: 0, evenStopped: false } as const;

describe('when a VM’s process is started', () => {
  test('one that crashes is started again, each time later, but never later than that', () => {
    const machine = started();
    const delays: number[] = [];
    for (let crash = 0; crash < 10; crash++) {
      const [wake] = end(machine, {});
      if (wake?.type === 'wake') delays.push(wake.delayMs);
      expect(machine.step({ type: 'due', nowMs: 0 })).toEqual([{ type: 'spawn' }]);
    }
    expect(delays.slice(0, 4)).toEqual([500, 1000, 2000, 4000]);
    expect(delays.at(-1)).toBe(DELAY_MS_MAX);
  });

  test('it falters from its first end on, until somebody starts it again', () => {
    const machine = started();
    expect(machine.falters).toBe(false);
    end(machine, {});
    machine.step({ type: 'due', nowMs: 1000 });
    expect(machine.falters).toBe(true);
    end(machine, { code: 78 });
    machine.step(START);
    expect(machine.falters).toBe(false);
  });

  test('one that has run for a while begins with the shortest delay again', () => {
    const machine = started();
    end(machine, {});
    machine.step({ type: 'due', nowMs: 1000 });
    expect(end(machine, {}, 61_000)).toEqual([{ type: 'wake', delayMs: 500 }]);
  });

  test.each([64, 65, 77, 78])('one that was refused (%i) is not, until somebody says so', (code) => {
    const machine = started();
    expect(end(machine, { code, reason: 'no userfaultfd' })).toEqual([]);
    expect(machine).toMatchObject({ phase: 'refused', reason: 'no userfaultfd' });
    expect(machine.step({ type: 'due', nowMs: 0 })).toEqual([]);
    expect(machine.step(START)).toEqual([{ type: 'spawn' }]);
  });

  test.each(['stopped', 'handed-over'])('one that ended as %s is not, unless it is named', (outcome) => {
    const machine = started();
    expect(end(machine, { code: 0, outcome })).toEqual([]);
    expect(machine.step(START)).toEqual([]);
    expect(machine.step({ ...START, evenStopped: true })).toEqual([{ type: 'spawn' }]);
  });

  test.each([
    ['vm-lost', 69],
    ['guest-shutdown', 0],
    ['fenced', 75],
  ])('one whose VM has gone (%s) waits for it to come back', (outcome, code) => {
    expect(end(started(), { code, outcome })).toEqual([{ type: 'wake', delayMs: 500 }]);
  });

  test('an end in good order: terminated, waited for, and not started again', () => {
    const machine = started();
    expect(machine.step({ type: 'end' })).toEqual([{ type: 'terminate' }]);
    expect(machine.step({ type: 'end' })).toEqual([]);
    expect(machine.step(START)).toEqual([]);
    expect(end(machine, { code: 1 })).toEqual([{ type: 'ended' }]);
    expect(machine.phase).toBe('ended');
  });

  test('an end while it waits or rests is at once', () => {
    for (const code of [1, 78]) {
      const machine = started();
      end(machine, { code });
      expect(machine.step({ type: 'end' })).toEqual([{ type: 'ended' }]);
      expect(machine.step({ type: 'due', nowMs: 0 })).toEqual([]);
    }
  });

  test('one that waits or was refused rests when a person wants that, and one that runs is asked itself', () => {
    for (const code of [1, 78]) {
      const machine = started();
      expect(machine.step({ type: 'rest' })).toEqual([]);
      expect(machine.phase).toBe('running');
      end(machine, { code, reason: 'no QEMU' });
      machine.step({ type: 'rest' });
      expect(machine).toMatchObject({
        phase: 'stopped',
        reason: 'stopped by command; before that: no QEMU',
      });
      expect(machine.step({ type: 'due', nowMs: 0 })).toEqual([]);
      expect(machine.step(START)).toEqual([]);
      expect(machine.step({ ...START, evenStopped: true })).toEqual([{ type: 'spawn' }]);
    }
  });

  test('an end that nobody started is a mistake of ours', () => {
    expect(() => end(new ProcessMachine(), {})).toThrow('invalid transition [ended -> ended by itself]');
  });
});
