/** A person forces one side while the other runs, too: when the witness answers both, one of them is left, and it is the one that was forced last. */
import { expect, test } from 'vitest';
import { simulate, worldOf } from './simulate.ts';
import type { World } from './world.ts';

const SEEDS = Array.from({ length: 100 }, (_, index) => index + 1);

function isProtected({ primary, secondary }: World): boolean {
  return primary?.machine.state === 'PROTECTED' && secondary?.machine.state === 'STANDBY';
}

/** Nothing goes wrong but what is done here. */
function cutOff(world: World): void {
  world.calm = true;
  expect(world.runUntil(() => isProtected(world), 20_000)).toBe(true);
  world.etcd.cutOff[1] = true;
  world.partitioned = true;
  for (const link of [world.control, world.heartbeats, ...world.bulk]) link?.blackhole();
  expect(world.runUntil(() => world.secondary?.machine.state === 'BLOCKED', 20_000)).toBe(true);
  // The standby can't ask; the primary can, and runs alone.
  expect(world.runUntil(() => world.gate === null, 20_000)).toBe(true);
}

function forceStandby(world: World): void {
  world.mistaken = true;
  world.forced[1] = true;
  world.secondary?.dispatch({ type: 'command', command: 'force-failover' });
}

test('the standby, which cannot reach the witness', () => {
  for (const seed of SEEDS) {
    simulate(worldOf(seed, { failover: 'claimed', corruption: 0, stepFailures: 0 }), (world) => {
      cutOff(world);
      forceStandby(world);
      expect(world.runUntil(() => world.svm.running, 20_000)).toBe(true);
      expect(world.pvm.running).toBe(true);
      world.etcd.cutOff[1] = false;
      expect(world.runUntil(() => !world.pvm.alive, 20_000)).toBe(true);
      expect(world.primary?.machine.state).toBe('FENCED');
      expect(world.svm.running).toBe(true);
      expect(world.etcd.entry.record).toMatchObject({ mode: 'alone', primary: 'south' });
    });
  }
});

test('the standby, which can', () => {
  for (const seed of SEEDS) {
    simulate(worldOf(seed, { failover: 'claimed', corruption: 0, stepFailures: 0 }), (world) => {
      cutOff(world);
      world.etcd.cutOff[0] = true;
      world.etcd.cutOff[1] = false;
      // It has lost by now, unless it is told so only after the person's word.
      forceStandby(world);
      world.runUntil(() => world.svm.running, 20_000);
      world.etcd.cutOff[0] = false;
      expect(world.runUntil(() => world.pvm.running !== world.svm.running, 20_000)).toBe(true);
      const { record } = world.etcd.entry;
      expect(record?.primary).toBe(world.svm.running ? 'south' : 'north');
    });
  }
});
