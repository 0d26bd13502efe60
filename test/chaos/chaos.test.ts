/**
 * Random faults on the real thing: two agents, two QEMUs, an etcd of three members. Two minutes here; `npm run chaos -- --minutes 15` is longer, and tells
 * what happens as it goes. What happens is the seed's, when it happens is the machine's: a seed doesn't replay to the millisecond.
 */
import { randomInt } from 'node:crypto';
import { expect, test } from 'vitest';
import { runChaos } from './run.ts';

const { COLO_CHAOS_MINUTES: minutesText = '2', COLO_CHAOS_SEED: seedText } = process.env;
const minutes = Number(minutesText);
const seed = seedText === undefined ? randomInt(2 ** 31) : Number(seedText);
/** The guest boots before, and the last fault's wave is brought to its end. */
const BESIDE_MS = 10 * 60_000;

test(`${minutes} minutes of faults, seed ${seed}`, { timeout: minutes * 60_000 + BESIDE_MS }, async () => {
  const tells = seedText !== undefined || minutesText !== '2';
  const print = (line: string) => tells && process.stdout.write(`${line}\n`);
  const { violations, summary, evidence } = await runChaos({ seed, minutes, print });
  process.stdout.write(`${evidence === '' ? summary : evidence}\n`);
  expect(violations, `${summary}\nnpm run chaos -- --seed ${seed} has the same plan`).toEqual([]);
});
