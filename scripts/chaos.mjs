/**
 * `npm run chaos [-- --minutes N] [--seed S]`: N minutes (default 15) of faults at random on two agents, two QEMUs and an etcd of three members, as `test/chaos` says.
 * Prints what happens as it happens. Exits 0 only when everything held; otherwise the seed, the story and the agents' logs are printed.
 */
import { randomInt } from 'node:crypto';
import { parseArgs } from 'node:util';
import { run } from './native-tests.mjs';

const { values } = parseArgs({
  options: { minutes: { type: 'string', default: '15' }, seed: { type: 'string' } },
});
const minutes = Number(values.minutes);
if (!(minutes > 0)) {
  console.error(`chaos: --minutes takes a number above 0, not '${values.minutes}'`);
  process.exit(64);
}
const seed = values.seed === undefined ? randomInt(2 ** 31) : Number(values.seed);
if (!Number.isInteger(seed) || seed < 0) {
  console.error(`chaos: --seed takes a whole number, not '${values.seed}'`);
  process.exit(64);
}
console.log(`chaos: ${minutes} minutes, seed ${seed}`);
const env = { ...process.env, COLO_CHAOS_MINUTES: String(minutes), COLO_CHAOS_SEED: String(seed) };
/** The test has a limit of its own, ten minutes more than it was asked for. */
const timeout = (minutes + 15) * 60_000;
const tests = ['vitest', 'run', '--project', 'chaos', 'test/chaos/chaos.test.ts'];
process.exitCode = (await run('npx', tests, { env, timeout })) ? 0 : 1;
