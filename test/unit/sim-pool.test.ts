/** The threads that run the simulation's seeds, with seeds that fail, hang and crash in the worlds' place. */
import { describe, expect, test } from 'vitest';
import { runSeeds } from '../../scripts/sim-pool.mjs';

interface Pool {
  ended: number;
  failures: { seed: number; text: string }[];
}

function run(body: string, first: number, count: number, options = {}): Promise<Pool> {
  const module = `data:text/javascript,export function runSeed(seed) { ${body} }`;
  return runSeeds({ module, first, count, ...options }) as Promise<Pool>;
}

describe('a pool of seeds', () => {
  test('runs every seed once', async () => {
    // Each tells its number by failing: ten failures are the most that are kept.
    const { ended, failures } = await run('if (seed < 105) throw new Error("seed " + seed)', 100, 5000);
    expect(ended).toBe(5000);
    expect(failures.map(({ seed }) => seed)).toEqual([100, 101, 102, 103, 104]);
    expect(failures[3]?.text).toBe('seed 103');
  });

  test('begins no new one after ten failures', async () => {
    const { ended, failures } = await run('throw new Error("broken")', 0, 1_000_000);
    expect(failures.length).toBeGreaterThanOrEqual(10);
    expect(ended).toBeLessThan(1_000_000);
  });

  test('names the seed that never ends, and goes on with the others', async () => {
    const { ended, failures } = await run('while (seed === 7);', 0, 50, { seedLimitMs: 2000 });
    expect(failures.map(({ seed }) => seed)).toEqual([7]);
    expect(ended).toBe(49);
  });

  test('names the seed that brought its thread down', async () => {
    const { ended, failures } = await run('if (seed === 3) process.exit(1)', 0, 50);
    expect(failures.map(({ seed }) => seed)).toEqual([3]);
    expect(ended).toBe(49);
  });

  test("says why the worlds couldn't be loaded", async () => {
    const { failures } = (await runSeeds({
      module: 'data:text/javascript,nonsense(',
      first: 0,
      count: 9,
    })) as Pool;
    expect(failures[0]?.text).toContain('SyntaxError');
  });
});
