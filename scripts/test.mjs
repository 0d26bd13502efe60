/**
 * Everything that `npm test` runs, after scripts/setup.sh: lint, the native tests (plain, then under ASan+UBSan and TSan), unit tests,
 * simulation, and the end-to-end tests on real QEMU. Nothing is skipped; the last line counts what ran.
 */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism } from 'node:os';

const OUTPUT = '.cache/test';
const CORES = availableParallelism();
/** Several times what the longest step takes on two busy cores: what hangs is ended and counts as failed, and the rest still runs. */
const STEP_LIMIT_MS = 1_500_000;
rmSync(OUTPUT, { recursive: true, force: true });
mkdirSync(OUTPUT, { recursive: true });

/** One thread against a slow oracle: ThreadSanitizer has nothing to look at there, and makes them ten times as slow. The other two runs have them. */
const ONE_THREAD = ['DiskStream.*', 'PageDelta.*', 'StandbyDisk.Equals*', 'DiskLog.StandbyIsByteForByte*'];

const total = { passed: 0, failed: 0 };
/** Told again just before the last line: who sees only the end of a long output must still learn what failed. */
const complaints = [];

await step('lint', () => check('npx', ['biome', 'check', '.']));
await step('types', () => check('npx', ['tsc', '-p', 'tsconfig.json', '--noEmit']));
await step('native format', () => check('sh', ['scripts/lint-native.sh']));
for (const sanitizer of ['none', 'address', 'thread'])
  await step(`native tests (sanitizer: ${sanitizer})`, () => nativeTests(sanitizer));
for (const project of ['unit', 'sim', 'e2e']) await step(`${project} tests`, () => vitest(project));

for (const complaint of complaints) console.log(`\n== FAILED: ${complaint}`);
console.log(`${total.passed} passed, ${total.failed} failed`);
process.exitCode = total.failed === 0 ? 0 : 1;

/** Runs one step and adds what it counted; a step that breaks before it could count is one failure. */
async function step(name, body) {
  console.log(`\n== ${name}`);
  const began = performance.now();
  let result;
  try {
    result = await body();
  } catch (error) {
    result = { passed: 0, failed: 1, complaint: error.message };
    console.error(error.message);
  }
  if (result.failed > 0) complaints.push(`${name}\n${result.complaint ?? ''}`);
  total.passed += result.passed;
  total.failed += result.failed;
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  console.log(`-- ${name}: passed ${result.passed}, failed ${result.failed}, in ${seconds} s`);
}

function check(command, args) {
  return run(command, args) ? { passed: 1, failed: 0 } : { passed: 0, failed: 1 };
}

async function nativeTests(sanitizer) {
  const folder = `build-test/${sanitizer}`;
  const options = ['-DCOLO_TESTS=ON', `-DCOLO_SANITIZE=${sanitizer === 'none' ? '' : sanitizer}`];
  must('cmake', [
    '-S',
    '.',
    '-B',
    folder,
    '-DCMAKE_BUILD_TYPE=RelWithDebInfo',
    ...options,
    '--log-level=WARNING',
  ]);
  must('cmake', ['--build', folder, '--target', 'core_test', '--parallel', `${CORES}`, '--', '--quiet']);
  const shards = Array.from({ length: CORES }, (_, index) => index);
  const ended = await Promise.all(
    shards.map((shard) => nativeShard(`${folder}/core_test`, sanitizer, shard, shards.length)),
  );
  return {
    passed: ended.reduce((sum, { passed }) => sum + passed, 0),
    failed: ended.reduce((sum, { failed }) => sum + failed, 0),
    complaint: ended.map(({ complaint }) => complaint).join(''),
  };
}

/** One process with its share of the tests. Most tests use one core: they wait for a child process, or it waits for them. */
async function nativeShard(file, sanitizer, shard, shards) {
  const report = `${OUTPUT}/native-${sanitizer}-${shard}.json`;
  const log = `${OUTPUT}/native-${sanitizer}-${shard}.log`;
  const filter = sanitizer === 'thread' ? [`--gtest_filter=-${ONE_THREAD.join(':')}`] : [];
  const output = openSync(log, 'w');
  const child = spawn(file, [`--gtest_output=json:${report}`, ...filter], {
    stdio: ['ignore', output, output],
    env: { ...process.env, GTEST_TOTAL_SHARDS: `${shards}`, GTEST_SHARD_INDEX: `${shard}` },
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
  const { tests, failures, errors } = JSON.parse(readFileSync(report, 'utf8'));
  return { ...counted(tests, failures + errors, code === 0), complaint };
}

/** The parts of GoogleTest's output that belong to tests which failed or did not end. */
function whatFailed(text) {
  const tests = text.split(/^(?=\[ RUN {6}\])/m);
  return tests.filter((test, index) => index === tests.length - 1 || !/^\[ {7}OK \]/m.test(test)).join('');
}

function vitest(project) {
  const report = `${OUTPUT}/${project}.json`;
  const reporters = ['--reporter=default', '--reporter=json', `--outputFile.json=${report}`];
  const ended = run('npx', ['vitest', 'run', '--project', project, ...reporters]);
  const { numTotalTests, numPassedTests, numFailedTestSuites, testResults } = JSON.parse(
    readFileSync(report, 'utf8'),
  );
  const failed = numTotalTests - numPassedTests; // a skipped or pending test counts as failed: nothing is skipped here
  const complaint = testResults
    .flatMap(({ name, message, assertionResults }) => [
      ...(message ? [`${name}: ${message}`] : []),
      ...assertionResults
        .filter(({ status }) => status !== 'passed')
        .map((test) => `${name}: ${test.fullName} (${test.status})\n${test.failureMessages.join('\n')}`),
    ])
    .join('\n');
  return { ...counted(numTotalTests, Math.max(failed, numFailedTestSuites > 0 ? 1 : 0), ended), complaint };
}

/** A runner that reports no failure and yet ends with an error (a crash, a sanitizer's finding, a leak) is a failure. */
function counted(tests, failed, ended) {
  if (tests === 0) throw new Error('no test ran');
  const failures = failed === 0 && !ended ? 1 : failed;
  return { passed: tests - Math.min(tests, failures), failed: failures };
}

function must(command, args) {
  if (!run(command, args)) throw new Error(`${command} ${args.join(' ')} failed`);
}

function run(command, args) {
  const result = spawnSync(command, args, {
    stdio: 'inherit',
    timeout: STEP_LIMIT_MS,
    killSignal: 'SIGKILL',
  });
  if (result.error) throw result.error;
  return result.status === 0;
}
