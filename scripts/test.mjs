/**
 * Everything that `npm test` runs, after scripts/setup.sh: lint, the native tests (plain, then under ASan+UBSan and TSan), unit tests,
 * simulation, and the end-to-end tests on real QEMU. Nothing is skipped; the last line counts what ran.
 */
import { spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, rmSync } from 'node:fs';

const OUTPUT = '.cache/test';
rmSync(OUTPUT, { recursive: true, force: true });
mkdirSync(OUTPUT, { recursive: true });

const total = { passed: 0, failed: 0 };

step('lint', () => check('npx', ['biome', 'check', '.']));
step('types', () => check('npx', ['tsc', '-p', 'tsconfig.json', '--noEmit']));
step('native format', () => check('sh', ['scripts/lint-native.sh']));
for (const sanitizer of ['none', 'address', 'thread'])
  step(`native tests (sanitizer: ${sanitizer})`, () => nativeTests(sanitizer));
for (const project of ['unit', 'sim', 'e2e']) step(`${project} tests`, () => vitest(project));

console.log(`${total.passed} passed, ${total.failed} failed`);
process.exitCode = total.failed === 0 ? 0 : 1;

/** Runs one step and adds what it counted; a step that breaks before it could count is one failure. */
function step(name, run) {
  console.log(`\n== ${name}`);
  const began = performance.now();
  let counted;
  try {
    counted = run();
  } catch (error) {
    console.error(error.message);
    counted = { passed: 0, failed: 1 };
  }
  total.passed += counted.passed;
  total.failed += counted.failed;
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  console.log(`-- ${name}: passed ${counted.passed}, failed ${counted.failed}, in ${seconds} s`);
}

function check(command, args) {
  return spawn(command, args) ? { passed: 1, failed: 0 } : { passed: 0, failed: 1 };
}

function nativeTests(sanitizer) {
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
  must('cmake', ['--build', folder, '--target', 'core_test', '--parallel', '2', '--', '--quiet']);
  const report = `${OUTPUT}/native-${sanitizer}.json`;
  const ended = spawn(`${folder}/core_test`, ['--gtest_brief=1', `--gtest_output=json:${report}`]);
  const { tests, failures, errors } = JSON.parse(readFileSync(report, 'utf8'));
  return counted(tests, failures + errors, ended);
}

function vitest(project) {
  const report = `${OUTPUT}/${project}.json`;
  const reporters = ['--reporter=default', '--reporter=json', `--outputFile.json=${report}`];
  const ended = spawn('npx', ['vitest', 'run', '--project', project, ...reporters]);
  const { numTotalTests, numPassedTests, numFailedTestSuites } = JSON.parse(readFileSync(report, 'utf8'));
  const failed = numTotalTests - numPassedTests; // a skipped or pending test counts as failed: nothing is skipped here
  return counted(numTotalTests, Math.max(failed, numFailedTestSuites > 0 ? 1 : 0), ended);
}

/** A runner that reports no failure and yet ends with an error (a crash, a sanitizer's finding, a leak) is a failure. */
function counted(tests, failed, ended) {
  if (tests === 0) throw new Error('no test ran');
  const failures = failed === 0 && !ended ? 1 : failed;
  return { passed: tests - Math.min(tests, failures), failed: failures };
}

function must(command, args) {
  if (!spawn(command, args)) throw new Error(`${command} ${args.join(' ')} failed`);
}

function spawn(command, args) {
  const result = spawnSync(command, args, { stdio: 'inherit' });
  if (result.error) throw result.error;
  return result.status === 0;
}
