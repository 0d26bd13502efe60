/**
 * Changed inputs through every decoder: a fixed number of the same ones each time, or, with COLO_FUZZ_SECONDS, others for so long (`npm run
 * fuzz`). An input that a decoder fails at is kept; one whose fault has been mended belongs into test/fuzz/corpus/DECODER/.
 */
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { Random } from '../sim/clock.ts';
import { Pool } from './mutate.ts';
import { TARGETS, type Target } from './targets.ts';

const secondsGiven = process.env['COLO_FUZZ_SECONDS'];
const SECONDS = secondsGiven === undefined ? null : Number(secondsGiven);
const RUNS = 2000;
/** Of the processor's time, for inputs of at most 64 KiB: a peer must not be able to keep the event loop busy. */
const MS_MAX = 1000;
const FINDINGS = path.join(import.meta.dirname, '..', '..', '.cache', 'fuzz');

/** What the decoder said; throws when it should not have said it. */
function answerOf(target: Target, input: Buffer): string {
  const before = process.cpuUsage();
  let answer = 'accepted';
  try {
    target.feed(input);
  } catch (error) {
    // An exact match: TypeError is what a mistake looks like, and an Error too.
    const refused = target.refusals.some((kind) => (error as Error).constructor === kind);
    if (!refused) throw error;
    answer = (error as Error).message;
  }
  const { user, system } = process.cpuUsage(before);
  if ((user + system) / 1000 > MS_MAX) throw new Error(`it took ${(user + system) / 1000} ms`);
  return answer;
}

function tell(target: Target, input: Buffer, error: Error): never {
  mkdirSync(FINDINGS, { recursive: true });
  const name = createHash('sha256').update(input).digest('hex').slice(0, 16);
  const file = path.join(FINDINGS, `${target.name}-finding-${name}`);
  writeFileSync(file, input);
  throw new Error(`${target.name}: ${error.message}\nThe input is kept in ${file}\n${error.stack}`);
}

function fuzz(target: Target, seed: number, goOn: (runs: number) => boolean): number {
  const pool = new Pool(
    target.seeds.map((each) => Buffer.from(each)),
    new Random(seed),
  );
  let runs = 0;
  for (; goOn(runs); runs++) {
    const input = pool.next();
    try {
      pool.learn(input, answerOf(target, input));
    } catch (error) {
      tell(target, input, error as Error);
    }
  }
  return runs;
}

describe.each(TARGETS)('$name', (target) => {
  test('takes its seeds', () => {
    expect(target.seeds.map((seed) => answerOf(target, Buffer.from(seed)))).toContain('accepted');
  });

  test('does not fail at what it once failed at', () => {
    const folder = path.join(import.meta.dirname, 'corpus', target.name);
    for (const file of existsSync(folder) ? readdirSync(folder) : [])
      expect(answerOf(target, readFileSync(path.join(folder, file)))).toBeTypeOf('string');
  });

  test('fails at no changed input', { timeout: 60_000 + (SECONDS ?? 0) * 1000 }, () => {
    const end = performance.now() + (SECONDS ?? 0) * 1000;
    const seed = SECONDS === null ? 1 : Math.floor(Math.random() * 2 ** 31);
    const runs = fuzz(target, seed, (done) => (SECONDS === null ? done < RUNS : performance.now() < end));
    expect(runs).toBeGreaterThan(0);
  });
});
