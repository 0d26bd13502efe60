/**
 * `npm run sanitize`: the native tests under AddressSanitizer with UndefinedBehaviorSanitizer and under ThreadSanitizer, and the unit tests with
 * addons that were built so. Exits 0 only when all of them held.
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import path from 'node:path';
import { must, nativeTests, run } from './native-tests.mjs';

/** Those that use the addon and start no program but Node.js: ThreadSanitizer's library crashes many another (dash, qemu-nbd) that it isn't part of. */
const RACING_TESTS = ['engines', 'objects', 'standby-disks', 'security', 'lifetime'].map(
  (name) => `test/unit/native-${name}.test.ts`,
);
/** Counts descriptors, and a report is one more. */
const ALL_BUT_LEAKS = ['--testNamePattern', '^(?!.*leaves no thread and no descriptor)'];

const failed = [];

for (const sanitizer of ['address', 'thread']) {
  await part(`native tests, ${sanitizer}`, async () => {
    const { passed, failed: failures } = await nativeTests(sanitizer);
    console.log(`passed ${passed}, failed ${failures}`);
    return failures === 0;
  });
}
await part('unit tests with the addon, address', () =>
  addonTests('address', 'libasan.so', { ASAN_OPTIONS: 'detect_leaks=0' }),
);
await part('unit tests with the addon, thread', addonRaces);

for (const name of failed) console.error(`FAILED: ${name}`);
console.log(failed.length === 0 ? 'all held' : `${failed.length} failed`);
process.exitCode = failed.length === 0 ? 0 : 1;

async function part(name, body) {
  console.log(`\n== ${name}`);
  let held = false;
  try {
    held = await body();
  } catch (error) {
    console.error(error.message);
  }
  if (!held) failed.push(name);
}

/** Node.js itself isn't built with the sanitizer, so its library must be there before everything else; and Node.js frees little when it ends. */
async function addonTests(sanitizer, library, options, tests = []) {
  const folder = path.resolve(`build-sanitize/${sanitizer}`);
  await must('npx', [
    'cmake-js',
    'build',
    '--config',
    'Release',
    '--out',
    `${folder}/build`,
    `--CDCOLO_SANITIZE=${sanitizer}`,
  ]);
  const preload = execFileSync('c++', [`-print-file-name=${library}`], { encoding: 'utf8' }).trim();
  return run(process.execPath, ['node_modules/vitest/vitest.mjs', 'run', '--project', 'unit', ...tests], {
    env: { ...process.env, COLO_AGENT_PREBUILD: folder, LD_PRELOAD: preload, ...options },
  });
}

/**
 * ThreadSanitizer sees no atomic operation of what isn't built with it, and so takes much in Node.js and its other addons for races: only reports
 * that our addon has a part in count, and no process ends with an error for the others.
 */
async function addonRaces() {
  const reports = path.resolve('build-sanitize/races');
  rmSync(reports, { recursive: true, force: true });
  mkdirSync(reports, { recursive: true });
  const suppressions = path.resolve('native/test/node-races.supp');
  const options = `exitcode=0 log_path=${reports}/process suppressions=${suppressions}`;
  const held = await addonTests('thread', 'libtsan.so', { TSAN_OPTIONS: options }, [
    ...RACING_TESTS,
    ...ALL_BUT_LEAKS,
  ]);
  const races = readdirSync(reports)
    .flatMap((file) => readFileSync(`${reports}/${file}`, 'utf8').split('=================='))
    .filter((report) => report.includes('WARNING') && report.includes('colo_agent.node'));
  for (const race of races) console.error(race);
  return held && races.length === 0;
}
