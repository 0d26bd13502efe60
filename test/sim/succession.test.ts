/** The survivor of a take-over goes on as the primary, in the generation that it has won: there and back, and then a life like any other. */
import { describe, expect, test } from 'vitest';
import { live } from './faults.ts';
import { simulate, worldOf } from './simulate.ts';
import type { World } from './world.ts';

const SEEDS = Array.from({ length: 200 }, (_, index) => index + 1);

/** The primary's host dies; whoever stood by is the primary then. Nothing else goes wrong meanwhile: not even a byte. */
function failOver(world: World): void {
  world.calm = true;
  const protectedNow = () =>
    world.primary?.machine.state === 'PROTECTED' && world.secondary?.machine.state === 'STANDBY';
  expect(world.runUntil(protectedNow, 20_000)).toBe(true);
  world.kill('P-host');
  expect(world.runUntil(() => world.svm.running, 20_000)).toBe(true);
  world.succeed();
  world.calm = false;
}

describe.each(['claimed', 'granted'] as const)('%s', (failover) => {
  test('a survivor is as good a primary as any other', () => {
    for (const seed of SEEDS) {
      simulate(worldOf(seed, { failover, lossyCrashes: failover === 'claimed', corruption: 0 }), (world) => {
        failOver(world);
        failOver(world);
        live(world);
      });
    }
  });
});
