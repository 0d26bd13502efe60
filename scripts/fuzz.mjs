/**
 * `npm run fuzz [-- --seconds N] [--only NAME]`: N seconds (default 60) of changed inputs for each decoder, as many at a time as there are cores:
 * the native ones by libFuzzer, those in TypeScript by test/fuzz. NAME is a folder of native/fuzz/corpus, or `typescript`. An input that a decoder
 * fails at is kept in .cache/fuzz, and so is what libFuzzer has learned, from one run to the next. Exits 0 when nothing was found.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdirSync, openSync, readdirSync, readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { CORES, must } from './native-tests.mjs';

const FOLDER = '.cache/fuzz';
const BUILD = 'build-test/fuzz';
const CORPUS = 'native/fuzz/corpus';

const { values } = parseArgs({
  options: { seconds: { type: 'string', default: '60' }, only: { type: 'string' } },
});
const seconds = Number(values.seconds);
if (!Number.isInteger(seconds) || seconds < 1) {
  console.error(`fuzz: --seconds takes a whole number from 1 on, not '${values.seconds}'`);
  process.exit(64);
}

const jobs = [...scriptJobs(), ...nativeJobs()];
if (jobs.length === 0) {
  console.error(`fuzz: there is no decoder '${values.only}'`);
  process.exit(64);
}
const total = jobs.length;
mkdirSync(FOLDER, { recursive: true });
if (jobs.some(({ native }) => native)) await build();
const findings = [];
await Promise.all(Array.from({ length: CORES }, work));
for (const finding of findings) console.error(`\n== FOUND: ${finding}`);
console.log(`${total} fuzzers, ${seconds} s for each decoder: ${findings.length} found something`);
process.exitCode = findings.length === 0 ? 0 : 1;

/** One executable for each folder of the corpus. */
function nativeJobs() {
  const limits = ['-timeout=10', '-rss_limit_mb=2048', '-malloc_limit_mb=256', '-max_len=65536'];
  return readdirSync(CORPUS)
    .filter((name) => values.only === undefined || name === values.only)
    .map((name) => {
      const learned = `${FOLDER}/corpus/${name}`;
      mkdirSync(learned, { recursive: true });
      const args = [`-max_total_time=${seconds}`, ...limits, `-artifact_prefix=${FOLDER}/${name}-finding-`];
      const command = `${BUILD}/fuzz_${name}`;
      return { name, native: true, command, args: [...args, learned, `${CORPUS}/${name}`] };
    });
}

/** All decoders in TypeScript, one after the other: about as many as there are native ones, and so a core's work. */
function scriptJobs() {
  if (values.only !== undefined && values.only !== 'typescript') return [];
  return [
    { name: 'typescript', native: false, command: 'npx', args: ['vitest', 'run', '--project', 'fuzz'] },
  ];
}

async function build() {
  await must('cmake', [
    '-S',
    '.',
    '-B',
    BUILD,
    '-DCOLO_FUZZ=ON',
    '-DCMAKE_CXX_COMPILER=clang++',
    '--log-level=WARNING',
  ]);
  await must('cmake', ['--build', BUILD, '--parallel', `${CORES}`, '--', '--quiet']);
}

/** Takes one job after the other until there are none. */
async function work() {
  for (let job = jobs.shift(); job !== undefined; job = jobs.shift()) await fuzz(job);
}

async function fuzz({ name, command, args }) {
  const log = `${FOLDER}/${name}.log`;
  const output = openSync(log, 'w');
  const child = spawn(command, args, {
    stdio: ['ignore', output, output],
    env: { ...process.env, COLO_FUZZ_SECONDS: `${seconds}` },
  });
  closeSync(output);
  const [code, signal] = await once(child, 'exit');
  const text = readFileSync(log, 'utf8');
  const runs = /^Done (\d+) runs/m.exec(text)?.[1];
  console.log(
    `${name}: ${code === 0 ? `nothing found${runs ? ` in ${runs} runs` : ''}` : 'FOUND SOMETHING'}`,
  );
  if (code === 0) return;
  const kept = [...text.matchAll(/(?:Test unit written to|The input is kept in) (\S+)/g)].map(
    ([, file]) => file,
  );
  findings.push(
    `${name} (${signal ?? `status ${code}`}); inputs: ${[...new Set(kept)].join(' ') || 'none was kept'}; ${log} tells more\n${text.slice(-2000)}`,
  );
}
