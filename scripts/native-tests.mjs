/** The native tests, built and run for `npm test` and `npm run sanitize`, and what both need to run programs and count what failed. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, mkdirSync, openSync, readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import path from 'node:path';

export const OUTPUT = '.cache/test';
export const CORES = availableParallelism();
/** Several times what the longest step takes on two busy cores: what hangs is ended and counts as failed, and the rest still runs. */
const STEP_LIMIT_MS = 1_500_000;

/**
 * One thread against a slow oracle, or the same two threads once for each bit and byte of what they exchange: ThreadSanitizer has nothing (more) to look at
 * there, and makes them ten times as slow. The other two runs have them.
 */
const NOT_FOR_THREAD_SANITIZER = [
  'DiskStream.*',
  'PageDelta.*',
  'StandbyDisk.Equals*',
  'DiskLog.StandbyIsByteForByte*',
  'Targets/FuzzCorpus.*',
  'StandbyEngine*Test.*FlippedBitIsNoticed*',
  'StandbyEngine*Test.EpochCutAnywhere*',
];
/** The core that scripts/setup.sh has compiled with the addon: what is shipped is what is tested, and isn't compiled twice. */
const SHIPPED_CORE = path.resolve('build/libcolo_core.a');

/** More processes than cores: many tests wait for a child process, or for a time to be over. */
const SHARDS = 2 * CORES;
/** Below what else runs meanwhile, whose guests must not stand still for a compiler. */
const COMPILER_PRIORITY = 10;

/** `sanitizer`: none, address (with undefined) or thread. */
export async function nativeTests(sanitizer) {
  mkdirSync(OUTPUT, { recursive: true });
  const folder = `build-test/${sanitizer}`;
  const core = sanitizer === 'none' ? `-DCOLO_CORE_LIBRARY=${SHIPPED_CORE}` : `-DCOLO_SANITIZE=${sanitizer}`;
  await must('cmake', [
    '-S',
    '.',
    '-B',
    folder,
    '-DCMAKE_BUILD_TYPE=RelWithDebInfo',
    '-DCOLO_TESTS=ON',
    core,
    '--log-level=WARNING',
  ]);
  const build = ['--build', folder, '--target', 'core_test', '--parallel', `${CORES}`, '--', '--quiet'];
  await must('nice', ['-n', `${COMPILER_PRIORITY}`, 'cmake', ...build]);
  const ended = await Promise.all(
    Array.from({ length: SHARDS }, (_, shard) => nativeShard(`${folder}/core_test`, sanitizer, shard)),
  );
  return {
    passed: ended.reduce((sum, { passed }) => sum + passed, 0),
    failed: ended.reduce((sum, { failed }) => sum + failed, 0),
    complaint: ended.map(({ complaint }) => complaint).join(''),
  };
}

/** One process with its share of the tests. */
async function nativeShard(file, sanitizer, shard) {
  const report = `${OUTPUT}/native-${sanitizer}-${shard}.json`;
  const log = `${OUTPUT}/native-${sanitizer}-${shard}.log`;
  const filter = sanitizer === 'thread' ? [`--gtest_filter=-${NOT_FOR_THREAD_SANITIZER.join(':')}`] : [];
  const output = openSync(log, 'w');
  const child = spawn(file, [`--gtest_output=json:${report}`, ...filter], {
    stdio: ['ignore', output, output],
    env: { ...process.env, GTEST_TOTAL_SHARDS: `${SHARDS}`, GTEST_SHARD_INDEX: `${shard}` },
    timeout: STEP_LIMIT_MS,
    killSignal: 'SIGKILL',
  });
  closeSync(output);
  const [code, signal] = await once(child, 'exit');
  const complaint =
    code === 0 ? '' : `${whatFailed(readFileSync(log, 'utf8'))}\n${signal ?? `status ${code}`}\n`;
  if (complaint) console.error(complaint);
  if (!existsSync(report)) {
    return { passed: 0, failed: 1, complaint: `${file} (shard ${shard}) left no report\n${complaint}` };
  }
  const { tests, failures, errors, testsuites } = JSON.parse(readFileSync(report, 'utf8'));
  // A skipped test counts as failed: nothing is skipped here.
  const skipped = testsuites
    .flatMap(({ testsuite }) => testsuite)
    .filter(({ result }) => result === 'SKIPPED');
  const skips = skipped.map(({ classname, name }) => `${classname}.${name} was skipped\n`).join('');
  return {
    ...counted(tests, failures + errors + skipped.length, code === 0),
    complaint: complaint + skips,
  };
}

/** The parts of GoogleTest's output that belong to tests which failed or did not end. */
function whatFailed(text) {
  const tests = text.split(/^(?=\[ RUN {6}\])/m);
  return tests.filter((test, index) => index === tests.length - 1 || !/^\[ {7}OK \]/m.test(test)).join('');
}

/** A runner that reports no failure and yet ends with an error (a crash, a sanitizer's finding, a leak) is a failure. */
export function counted(tests, failed, ended) {
  if (tests === 0) throw new Error('no test ran');
  const failures = failed === 0 && !ended ? 1 : failed;
  return { passed: tests - Math.min(tests, failures), failed: failures };
}

/** Throws when it fails. */
export async function must(command, args, options = {}) {
  if (!(await run(command, args, options))) throw new Error(`${command} ${args.join(' ')} failed`);
}

/** Resolves with whether it succeeded; what runs for too long is killed, and hasn't. `options` are spawn's. */
export async function run(command, args, options = {}) {
  const child = spawn(command, args, {
    stdio: 'inherit',
    timeout: STEP_LIMIT_MS,
    killSignal: 'SIGKILL',
    ...options,
  });
  const [code] = await once(child, 'exit');
  return code === 0;
}
