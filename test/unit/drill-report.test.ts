/** A drill's figures, and how they are told. */
import { describe, expect, test } from 'vitest';
import { DrillWatch } from '../../src/agent/drill-report.ts';
import { drillText } from '../../src/cli/drill-text.ts';
import type { PrimaryEvent } from '../../src/protocol/machine.ts';
import type { Body } from '../../src/protocol/messages.ts';

const said = (nowMs: number, body: Body, epoch: number, generation = 3): PrimaryEvent => ({
  type: 'message',
  nowMs,
  message: { vmId: '', generation, epoch, body },
});

/** One that was asked for at 1000, while checkpoint 7 was on its way; 8 is the last one. */
function watched(claimedMs: number | null): DrillWatch {
  const watch = new DrillWatch(1000);
  watch.event(said(1002, { type: 'received' }, 7));
  watch.event(said(1004, { type: 'loaded' }, 7));
  watch.effect({ type: 'stop-and-save', epoch: 8 }, 1010);
  watch.event({ type: 'stopped', epoch: 8, wasRunning: true, nowMs: 1011 });
  watch.event({ type: 'transmitted', epoch: 8, nowMs: 1016 });
  watch.event(said(1017, { type: 'received' }, 8));
  watch.event(said(1020, { type: 'loaded' }, 8));
  const handover = { vmId: '', generation: 3, epoch: 8, body: { type: 'handover' } } as const;
  watch.effect({ type: 'send', message: handover }, 1026);
  watch.event(said(1040, { type: 'took-over', settledMs: 4, claimedMs, runsMs: 10 }, 8, 4));
  return watch;
}

describe('a drill', () => {
  test("the standby's times lie in the middle of the way there and back", () => {
    const report = watched(6).report('web1', 'south');
    expect(report).toMatchObject({ vm: 'web1', node: 'south', generation: 4, epoch: 8, outageMs: 27 });
    expect(report.times).toEqual({
      lastCheckpoint: 10,
      stopped: 11,
      transferred: 16,
      received: 17,
      loaded: 20,
      handedOver: 26,
      disksSynced: 32,
      claimed: 34,
      runs: 38,
    });
  });

  test('a standby whose clock runs fast moves nothing before HANDOVER', () => {
    const watch = watched(null);
    watch.event(said(1030, { type: 'took-over', settledMs: 4, claimedMs: null, runsMs: 10 }, 8, 4));
    expect(watch.report('web1', 'south').times).toMatchObject({ disksSynced: 30, claimed: null, runs: 36 });
  });

  test('is told step by step, in the order in which the steps were done', () => {
    expect(drillText(watched(3).report('web1', 'south')).split('\n')).toEqual([
      '      10.0 ms  last checkpoint begun',
      '      11.0 ms  guest stopped for it',
      '      16.0 ms  sent',
      '      17.0 ms  whole on the standby',
      '      20.0 ms  loaded there',
      '      26.0 ms  VM stands here, handed over',
      '      31.0 ms  generation won at the witness',
      '      32.0 ms  disks synced there',
      '      38.0 ms  guest runs there, its network open',
      "      27.0 ms  the guest's outage",
      'web1 runs on south, in generation 4, from checkpoint 8',
    ]);
  });
});
