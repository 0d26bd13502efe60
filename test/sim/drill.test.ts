/** Planned failovers: the VM goes to the other host and comes back, and whatever goes wrong in the middle, exactly one host runs it in the end. */
import { describe, expect, test } from 'vitest';
import { drill, employPerson, keepAgentsRunning, live, settled } from './faults.ts';
import { simulate, worldOf } from './simulate.ts';
import type { Victim, World, WorldOptions } from './world.ts';

const SEEDS = Array.from({ length: 200 }, (_, index) => index + 1);
const VICTIMS: Victim[] = ['P-agent', 'P-qemu', 'P-host', 'S-agent', 'S-qemu', 'S-host'];

function waitProtected(world: World): void {
  const protectedNow = () =>
    world.primary?.machine.state === 'PROTECTED' && world.secondary?.machine.state === 'STANDBY';
  expect(world.runUntil(protectedNow, 20_000)).toBe(true);
}

/** Nothing else goes wrong meanwhile; then the host that has handed over stands by, with the disk that it had. */
function handOver(world: World): void {
  world.calm = true;
  waitProtected(world);
  drill(world);
  expect(world.runUntil(() => world.pvm.left && world.svm.running, 20_000)).toBe(true);
  world.succeed();
  world.calm = false;
}

describe.each(['claimed', 'granted', 'ordered'] as const)('%s', (failover) => {
  test('there and back, and then a life like any other', () => {
    for (const seed of SEEDS) {
      simulate(worldOf(seed, { failover, corruption: 0, witnessFaults: 0 }), (world) => {
        handOver(world);
        handOver(world);
        live(world);
      });
    }
  });

  test.each(VICTIMS)('%s dies at every point of it', (victim) => {
    for (const mode of ['pipelined', 'strict'] as const) {
      const options = worldOf(1, { mode, failover, stepFailures: 0, corruption: 0, witnessFaults: 0 });
      const [from, to] = extentOf(options);
      for (const side of [0, 1] as const) {
        for (let effects = from[side]; effects <= to[side]; effects++)
          simulate({ ...options, crash: { side, effects, victim } }, survive);
      }
    }
  });
});

/** How many effects each side has carried out when the drill begins, and when it has ended. */
function extentOf(options: WorldOptions): [[number, number], [number, number]] {
  let from: [number, number] = [0, 0];
  const world = simulate(options, (undisturbed) => {
    undisturbed.calm = true;
    waitProtected(undisturbed);
    from = [undisturbed.effectsOf(0) + 1, undisturbed.effectsOf(1) + 1];
    drill(undisturbed);
    expect(undisturbed.runUntil(() => undisturbed.pvm.left, 20_000)).toBe(true);
  });
  return [from, [world.effectsOf(0), world.effectsOf(1)]];
}

function survive(world: World): void {
  world.calm = true;
  waitProtected(world);
  drill(world);
  employPerson(world);
  keepAgentsRunning(world);
  world.runUntil(() => world.crashed, 5_000);
  expect(world.crashed).toBe(true);
  expect(world.runUntil(() => settled(world), 60_000)).toBe(true);
}
