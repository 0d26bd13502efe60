/** What is told of take-overs, from the machine's own events and effects; take-overs of real VMs are told in test/e2e. */
import { describe, expect, test } from 'vitest';
import { TAKE_OVER_BOUNDS_MS } from '../../src/agent/durations.ts';
import { summaryOf, type TakeOverRecord } from '../../src/agent/take-over-record.ts';
import { TakeOvers } from '../../src/agent/take-overs.ts';
import { takeOverText } from '../../src/cli/take-over-text.ts';
import type { SecondaryEffect, SecondaryEvent, StateWord } from '../../src/protocol/machine.ts';

describe('how long take-overs took', () => {
  function take(...steps: (StateWord | SecondaryEvent)[]): { count: number; sumMs: number } {
    const meter = new TakeOvers('web1');
    for (const step of steps) {
      if (typeof step === 'string')
        meter.effect({ type: 'state', state: step, reason: '' }, 7, step !== 'STARTING');
      else meter.event(step);
    }
    const { counts, sumMs, boundsMs } = meter.histogram();
    expect(boundsMs).toEqual(TAKE_OVER_BOUNDS_MS);
    return { count: counts.reduce((a, b) => a + b, 0), sumMs };
  }
  const lost = (nowMs: number): SecondaryEvent => ({ type: 'peer-lost', reason: '', nowMs });
  const silent = (heardMs: number, nowMs: number): SecondaryEvent => ({
    type: 'peer-silent',
    reason: '',
    heardMs,
    nowMs,
  });
  const tick = (nowMs: number): SecondaryEvent => ({ type: 'tick', nowMs });
  const promoted = (nowMs: number): SecondaryEvent => ({ type: 'promoted', nowMs });

  test('from the end of the connection until the VM runs', () => {
    expect(take(lost(1000), 'TAKING-OVER', tick(1050), promoted(1120), 'RUNNING')).toEqual({
      count: 1,
      sumMs: 120,
    });
  });

  test('of a silent primary, from when it was last heard', () => {
    expect(take(silent(300, 1000), 'TAKING-OVER', promoted(1120), 'RUNNING').sumMs).toBe(820);
  });

  test('waiting for the witness belongs to it', () => {
    const steps = [lost(1000), 'TAKING-OVER', tick(1500), 'BLOCKED', tick(9000), 'TAKING-OVER'] as const;
    expect(take(...steps, promoted(9100), 'RUNNING')).toEqual({ count: 1, sumMs: 8100 });
  });

  test('one that came to nothing is not counted, and the next one begins anew', () => {
    const steps = [lost(1000), 'TAKING-OVER', tick(1500), 'STARTING'] as const;
    expect(take(...steps)).toEqual({ count: 0, sumMs: 0 });
    expect(take(...steps, lost(8000), 'TAKING-OVER', promoted(8100), 'RUNNING').sumMs).toBe(100);
  });

  test('counts on when the same process takes over again', () => {
    const once = (at: number) => [lost(at), 'TAKING-OVER', promoted(at + 50), 'RUNNING'] as const;
    expect(take(...once(1000), 'STANDBY', ...once(5000))).toEqual({ count: 2, sumMs: 100 });
  });
});

describe('the record of a take-over', () => {
  /** `takesOver`: what the machine says of itself beside its words. */
  function recordOf(steps: (SecondaryEffect | SecondaryEvent)[], takesOver = true): TakeOverRecord {
    const told: TakeOverRecord[] = [];
    const takeOvers = new TakeOvers('web1', (record) => told.push(record));
    for (const step of steps) {
      if ('nowMs' in step) takeOvers.event(step);
      else takeOvers.effect(step, 41, takesOver);
    }
    expect(told).toEqual(takeOvers.records);
    expect(told).toHaveLength(1);
    return told[0] as TakeOverRecord;
  }
  const state = (word: StateWord, reason: string): SecondaryEffect => ({
    type: 'state',
    state: word,
    reason,
  });
  const CLAIM = { type: 'claim', claim: { kind: 'take-over', generation: 7, primary: 'north' } } as const;
  const shown = ({ steps }: TakeOverRecord) => steps.map(({ what, atMs, tookMs }) => [what, atMs, tookMs]);

  const SILENT: (SecondaryEffect | SecondaryEvent)[] = [
    { type: 'peer-silent', reason: 'no heartbeat for 800 ms', heardMs: 1000, nowMs: 1800 },
    // The machine tells the step before the word.
    { type: 'load', epoch: 42 },
    state('TAKING-OVER', 'at epoch 41: no heartbeat for 800 ms'),
    { type: 'loaded', epoch: 42, nowMs: 1805 },
    { type: 'settle-disks' },
    { type: 'disks-settled', nowMs: 1812 },
    CLAIM,
    { type: 'claim-won', kind: 'take-over', generation: 8, nowMs: 1816 },
    { type: 'promote', generation: 8 },
    { type: 'promoted', nowMs: 1820 },
    state('RUNNING', 'took over'),
  ];

  test('of a silent primary: what was seen, who decided, what took how long', () => {
    const record = recordOf(SILENT);
    expect(record).toMatchObject({
      outcome: 'took-over',
      cause: 'no heartbeat for 800 ms',
      decidedBy: 'witness',
      generation: 8,
      epoch: 42,
      tookMs: 820,
    });
    expect(shown(record)).toEqual([
      ['the primary was last heard', 0, null],
      ['it has been silent for too long', 800, null],
      ['load the last checkpoint', 800, 5],
      ['settle disks', 805, 7],
      ['ask the witness', 812, 4],
      ['let it run', 816, 4],
      ['the guest runs here', 820, null],
    ]);
    expect(Date.now() - Date.parse(record.beganAt)).toBeLessThan(60_000 + 820);
    expect(record.id).toMatch(/^web1-\d{8}T\d{9}Z$/);
  });

  test('for people, within 80 columns', () => {
    const record = {
      ...recordOf(SILENT),
      id: 'web1-20261127T160312480Z',
      beganAt: '2026-11-27T16:03:12.480Z',
    };
    expect(
      takeOverText(record),
    ).toBe(`web1-20261127T160312480Z: web1 took over at checkpoint 42, in generation 8
began    2026-11-27T16:03:12.480Z
cause    no heartbeat for 800 ms
decided  the witness
took     820.0 ms, from the first sign until the guest ran here

     at ms   took ms
       0.0            the primary was last heard        |
     800.0            it has been silent for too long                         |
                        no heartbeat for 800 ms
     800.0       5.0  load the last checkpoint                                #
                        checkpoint 42
     805.0       7.0  settle disks                                            #
     812.0       4.0  ask the witness                                         #
                        generation 8 is won
     816.0       4.0  let it run                                              ##
     820.0            the guest runs here                                      |`);
    const long = {
      ...record,
      outcome: 'given-up' as const,
      reason: 'word '.repeat(40),
      cause: 'word '.repeat(40),
      steps: [{ what: 'w', atMs: 1, tookMs: 0.2, detail: 'word '.repeat(40) }],
    };
    for (const line of takeOverText(long).split('\n')) expect(line.length).toBeLessThanOrEqual(80);
  });

  const lost: SecondaryEvent = { type: 'peer-lost', reason: 'ECONNRESET', nowMs: 1000 };
  const taking = state('TAKING-OVER', 'at epoch 41: ECONNRESET');

  test('the witness said no', () => {
    const reason = 'north runs it alone in generation 9';
    const record = recordOf([
      lost,
      taking,
      CLAIM,
      { type: 'claim-lost', kind: 'take-over', reason, nowMs: 1030 },
      state('STARTING', `waiting for a primary: ${reason}`),
    ]);
    expect(record).toMatchObject({ outcome: 'given-up', decidedBy: 'witness', generation: null, tookMs: 30 });
    expect(summaryOf(record)).toBe(`gave its take-over up after 30.0 ms: waiting for a primary: ${reason}`);
  });

  test('a witness that is silent for long is told once, and then a person decides', () => {
    const unanswered: SecondaryEvent = {
      type: 'claim-unanswered',
      kind: 'take-over',
      reason: 'refused',
      nowMs: 2000,
    };
    const record = recordOf([
      lost,
      taking,
      CLAIM,
      ...Array.from({ length: 1000 }, () => [unanswered, state('BLOCKED', 'the witness')]).flat(),
      { type: 'command', command: 'force-failover', nowMs: 9000 },
      { type: 'claim', claim: { kind: 'seize', atLeast: 8 } },
      state('TAKING-OVER', 'at epoch 41: ordered by a person'),
      { type: 'tick', nowMs: 14_000 },
      { type: 'promote', generation: 8 },
      { type: 'promoted', nowMs: 14_010 },
      state('RUNNING', 'took over, by force'),
    ]);
    expect(record).toMatchObject({ decidedBy: 'person', generation: 8, tookMs: 13_010 });
    expect(record.steps.filter(({ what }) => what === 'the witness is silent')).toHaveLength(1);
  });

  test.each([
    [{ handedOver: true } as const, 'ECONNRESET', 'primary'],
    [{}, 'ECONNRESET', 'nobody'],
    [{}, 'ordered by a person', 'person'],
  ])('without a claim: %j, %s: %s', (more, cause, decidedBy) => {
    const word = state('TAKING-OVER', `at epoch 41: ${cause}`);
    const promote: SecondaryEffect = { type: 'promote', generation: 8, ...more };
    const promoted: SecondaryEvent = { type: 'promoted', nowMs: 1010 };
    expect(recordOf([lost, word, promote, promoted, state('RUNNING', 'took over')])).toMatchObject({
      decidedBy,
    });
  });

  test('however often something is tried again, it stays small; its begin and its end are kept', () => {
    const again = (at: number): (SecondaryEffect | SecondaryEvent)[] => [
      { type: 'settle-disks' },
      { type: 'not-settled', reason: `attempt ${at}`, nowMs: at },
    ];
    const tries = Array.from({ length: 500 }, (_, index) => again(1001 + index)).flat();
    const record = recordOf([
      lost,
      taking,
      ...tries,
      { type: 'promoted', nowMs: 9000 },
      state('RUNNING', 'took over'),
    ]);
    expect(record.steps.length).toBeLessThanOrEqual(60);
    expect(record.steps[0]?.what).toBe("the primary's connection has ended");
    expect(record.steps.at(-1)?.what).toBe('the guest runs here');
  });

  test.each([
    ['the disks', { type: 'settle-failed', reason: 'EIO' }],
    ['QEMU', { type: 'promote-failed', reason: 'no answer' }],
  ] as const)(
    'one that %s have made impossible ends there, and isn’t the next one’s beginning',
    (_, failure) => {
      const told: TakeOverRecord[] = [];
      const takeOvers = new TakeOvers('web1', (record) => told.push(record));
      takeOvers.event(lost);
      takeOvers.effect(taking, 41, true);
      takeOvers.event({ ...failure, nowMs: 1010 });
      takeOvers.effect(state('BLOCKED', `impossible: ${failure.reason}`), 41, false);
      expect(told).toMatchObject([
        { outcome: 'given-up', tookMs: 10, reason: `impossible: ${failure.reason}` },
      ]);
      takeOvers.event({ type: 'command', command: 'failover', nowMs: 90_000 });
      takeOvers.effect(state('TAKING-OVER', 'at epoch 41: ordered by a person'), 41, true);
      takeOvers.effect(state('RUNNING', 'took over'), 41, false);
      expect(told[1]).toMatchObject({ outcome: 'took-over', cause: 'ordered by a person', tookMs: 0 });
    },
  );
});
