import { live } from './faults.ts';
import { InvariantViolation, QUIET, World, type WorldOptions } from './world.ts';

/** The world of a seed: half of them strict, half of them with a witness, a quarter with a standby that takes over by itself, some without any failing step. */
export function worldOf(seed: number, change: Partial<WorldOptions> = {}): WorldOptions {
  const failover = FAILOVERS[(seed >> 1) % 4] as WorldOptions['failover'];
  return {
    ...QUIET,
    seed,
    mode: seed % 2 === 0 ? 'pipelined' : 'strict',
    failover,
    witnessFaults: [0, 0.1, 0.4][seed % 3] ?? 0,
    connections: 1 + (seed % 3),
    stepFailures: [0, 0.01, 0.05][seed % 5] ?? 0,
    corruption: seed % 7 === 0 ? 0.005 : 0,
    lossyCrashes: failover === 'ordered' || (failover === 'claimed' && (seed >> 3) % 2 === 0),
    ...change,
  };
}

const FAILOVERS = ['granted', 'claimed', 'ordered', 'claimed'] as const;

/** Runs one world. A failure carries the seed and the last things that happened. */
export function simulate(options: WorldOptions, scenario: (world: World) => void = live): World {
  const world = new World(options);
  try {
    scenario(world);
    return world;
  } catch (error) {
    throw explain(options, scenario, error as Error);
  }
}

/** For the threads of scripts/sim-pool.mjs. */
export function runSeed(seed: number): void {
  simulate(worldOf(seed));
}

function tail(world: World): string {
  return world.log.slice(-100).join('\n');
}

/** The same world once more, written down this time. */
function explain(options: WorldOptions, scenario: (world: World) => void, error: Error): Error {
  const world = new World(options);
  world.tracing = true;
  try {
    scenario(world);
  } catch {
    const text = `seed ${options.seed}: ${error.message}\n${tail(world)}`;
    const explained =
      error instanceof InvariantViolation ? new InvariantViolation(error.invariant, text) : new Error(text);
    explained.stack = `${explained.message}\n${error.stack}`;
    return explained;
  }
  return new Error(
    `seed ${options.seed} fails once and not again (${error.message}): something in the world is not seeded`,
  );
}
