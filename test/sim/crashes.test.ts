/** A crash between any two effects of either side, from the first word to the third committed checkpoint, exhaustively. */
import { describe, expect, test } from 'vitest';
import { employPerson, keepAgentsRunning, settled } from './faults.ts';
import { simulate, worldOf } from './simulate.ts';
import type { Victim, World, WorldOptions } from './world.ts';

const VICTIMS: Victim[] = ['P-agent', 'P-qemu', 'P-host', 'S-agent', 'S-qemu', 'S-host'];
const SEEDS = [1, 2];

/** No fault but the one crash of the options; then everything must come to rest. */
function survive(world: World): void {
  world.calm = true;
  employPerson(world);
  keepAgentsRunning(world);
  world.runUntil(() => world.crashed, 5_000);
  expect(world.crashed).toBe(true);
  expect(world.runUntil(() => settled(world), 60_000)).toBe(true);
}

function undisturbed(options: WorldOptions): World {
  return simulate(options, (world) => {
    world.calm = true;
    expect(world.runUntil(() => world.commits === 3, 5_000)).toBe(true);
  });
}

describe.each(['pipelined', 'strict'] as const)('%s', (mode) => {
  test.each(VICTIMS)('%s dies at every point', (victim) => {
    for (const seed of SEEDS) {
      for (const failover of ['ordered', 'granted', 'claimed'] as const) {
        const options = worldOf(seed, { mode, failover, stepFailures: 0, corruption: 0, witnessFaults: 0 });
        const golden = undisturbed(options);
        for (const side of [0, 1] as const) {
          for (let effects = 1; effects <= golden.effectsOf(side); effects++) {
            simulate({ ...options, crash: { side, effects, victim } }, survive);
          }
        }
      }
    }
  });
});
