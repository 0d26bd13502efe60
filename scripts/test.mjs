/**
 * Everything that `npm test` runs, after scripts/setup.sh: lint, the native tests (plain, then under ASan+UBSan and TSan; the fuzzers' corpus is
 * among them), unit tests, simulation, changed inputs for every decoder, the model of the arbitration, the end-to-end tests on real QEMU, and two minutes of random faults on it. Nothing is skipped; the last line counts what ran.
 *
 * The native tests mostly compile, and much of the rest waits: these go side by side. The end-to-end tests have the machine to themselves.
 */
import { closeSync, mkdirSync, openSync, readFileSync, rmSync } from 'node:fs';
import { counted, nativeTests, OUTPUT, run } from './native-tests.mjs';

rmSync(OUTPUT, { recursive: true, force: true });
mkdirSync(OUTPUT, { recursive: true });

const total = { passed: 0, failed: 0 };
/** Told again just before the last line: who sees only the end of a long output must still learn what failed. */
const complaints = [];

await step('lint', () => check('npx', ['biome', 'check', '.']));
await step('types', () => check('npx', ['tsc', '-p', 'tsconfig.json', '--noEmit']));
await step('types of the web page', () => check('npx', ['tsc', '-p', 'tsconfig.web.json']));
await step('native format', () => check('sh', ['scripts/lint-native.sh']));
await Promise.all([nativeSteps(), stepsBeside()]);
await step('e2e tests', (output) => vitest('e2e', output));

for (const complaint of complaints) console.log(`\n== FAILED: ${complaint}`);
console.log(`${total.passed} passed, ${total.failed} failed`);
process.exitCode = total.failed === 0 ? 0 : 1;

async function nativeSteps() {
  for (const sanitizer of ['none', 'address', 'thread'])
    await step(`native tests (sanitizer: ${sanitizer})`, () => nativeTests(sanitizer));
}

/** Their output comes in one piece each, when they have ended. */
async function stepsBeside() {
  await stepBeside('chaos');
  await stepBeside('model', (output) => check('node', ['scripts/model.mjs'], output));
  for (const project of ['unit', 'fuzz', 'sim']) await stepBeside(project);
}

async function stepBeside(name, body = (output) => vitest(name, output)) {
  const log = `${OUTPUT}/${name}.log`;
  const output = openSync(log, 'w');
  await step(`${name} tests`, async () => {
    const result = await body(output);
    closeSync(output);
    process.stdout.write(`\n== ${name} tests\n${readFileSync(log, 'utf8')}`);
    return result;
  });
}

/** Runs one step and adds what it counted; a step that breaks before it could count is one failure. */
async function step(name, body) {
  console.log(`\n== ${name}`);
  const began = performance.now();
  let result;
  try {
    result = await body('inherit');
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

async function check(command, args, output = 'inherit') {
  const ended = await run(command, args, { stdio: ['ignore', output, output] });
  return ended ? { passed: 1, failed: 0 } : { passed: 0, failed: 1 };
}

async function vitest(project, output) {
  const report = `${OUTPUT}/${project}.json`;
  const reporters = ['--reporter=default', '--reporter=json', `--outputFile.json=${report}`];
  const ended = await run('npx', ['vitest', 'run', '--project', project, ...reporters], {
    stdio: ['ignore', output, output],
  });
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
