/** Both machines in worlds that go wrong, as `npm run sim` has them run. SIM_SEED=n runs that one in here, for a debugger. */
import { execFileSync } from 'node:child_process';
import { expect, test } from 'vitest';
import { runSeed } from './simulate.ts';

const SEEDS = 10_000;
const only = process.env['SIM_SEED'];

if (only !== undefined) {
  test(`seed ${only}`, () => runSeed(Number(only)));
} else {
  test(`${SEEDS} seeds`, { timeout: 600_000 }, () => {
    const said = execFileSync(process.execPath, ['scripts/sim.mjs', '--seeds', `${SEEDS}`], {
      encoding: 'utf8',
    });
    expect(said).toContain(`${SEEDS} seeds from 0 on held`);
  });
}
