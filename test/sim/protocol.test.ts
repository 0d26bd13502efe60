/** Both machines in worlds that go wrong. SIM_SEED=n replays one world, SIM_SEEDS=n runs so many. */
import { describe, expect, test } from 'vitest';
import { simulate, worldOf } from './simulate.ts';

const only = process.env['SIM_SEED'];
const seeds = Number(process.env['SIM_SEEDS'] ?? 2000);

describe('worlds in which things go wrong', () => {
  test(`${only === undefined ? `${seeds} seeds` : `seed ${only}`}`, { timeout: 300_000 }, () => {
    const run = only === undefined ? Array.from({ length: seeds }, (_, seed) => seed) : [Number(only)];
    for (const seed of run) expect(simulate(worldOf(seed)).clock.nowMs).toBeGreaterThan(0);
  });
});
