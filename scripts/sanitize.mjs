/**
 * `npm run sanitize`: the native tests under AddressSanitizer with UndefinedBehaviorSanitizer and under ThreadSanitizer, and the unit tests with an
 * addon that was built so. Exits 0 only when all of them held.
 */
import { execFileSync } from 'node:child_process';
import path from 'node:path';
import { must, nativeTests, run } from './native-tests.mjs';

const failed = [];

for (const sanitizer of ['address', 'thread']) {
  await part(`native tests, ${sanitizer}`, async () => {
    const { passed, failed: failures } = await nativeTests(sanitizer);
    console.log(`passed ${passed}, failed ${failures}`);
    return failures === 0;
  });
}
await part('unit tests with the addon, address', () =>
  addonTests('address', 'libasan.so', 'ASAN_OPTIONS', 'detect_leaks=0'),
);

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
function addonTests(sanitizer, library, optionsName, options) {
  const folder = path.resolve(`build-sanitize/${sanitizer}`);
  must('npx', [
    'cmake-js',
    'build',
    '--config',
    'Release',
    '--out',
    `${folder}/build`,
    `--CDCOLO_SANITIZE=${sanitizer}`,
  ]);
  const preload = execFileSync('c++', [`-print-file-name=${library}`], { encoding: 'utf8' }).trim();
  return run(process.execPath, ['node_modules/vitest/vitest.mjs', 'run', '--project', 'unit'], {
    env: { ...process.env, COLO_AGENT_PREBUILD: folder, LD_PRELOAD: preload, [optionsName]: options },
  });
}
