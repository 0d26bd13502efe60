/**
 * `npm run model`: every run of models/arbitration.pml by spin, within its bounds, also of those alone that the code makes (AS_CODED), those in which the key is lost
 * (WITH_REMOVAL), and those in which the VM is handed over (WITH_HANDOVER); and then with one rule
 * after the other broken, which must be noticed. Exits 0 only then. `-- --trail NAME` takes one of them, and prints the steps that led to what was found.
 */
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { CORES } from './native-tests.mjs';

const MODEL = path.resolve('models/arbitration.pml');
const FOLDER = path.resolve('.cache/model');
const DEPTH_MAX = 2000;
const MEMORY_MIB_MAX = 1800;

const { values } = parseArgs({ options: { trail: { type: 'string' } } });
const text = readFileSync(MODEL, 'utf8');
const mutants = [...new Set(text.match(/\bMUTANT_[A-Z_]+\b/g))];
const all = ['model', 'AS_CODED', 'WITH_REMOVAL', 'WITH_HANDOVER', ...mutants];
if (values.trail !== undefined && !all.includes(values.trail)) {
  console.error(`--trail ${values.trail}: give one of ${all.join(', ')}`);
  process.exit(64);
}
const names = all.filter((name) => !values.trail || name === values.trail);
const waiting = [...names];
const results = new Map();
rmSync(FOLDER, { recursive: true, force: true });
await Promise.all(Array.from({ length: CORES }, work));
const wrong = names.filter((name) => !tell(name, results.get(name)));
process.exitCode = wrong.length === 0 ? 0 : 1;

async function work() {
  for (let name = waiting.shift(); name !== undefined; name = waiting.shift()) {
    results.set(name, await check(name));
  }
}

/** Whether nothing may be found in it. */
function isSound(name) {
  return !name.startsWith('MUTANT_');
}

function definesOf(name) {
  return name === 'model' ? [] : [`-D${name}`];
}

/** What pan said, and how long all of it took. */
async function check(name) {
  const began = performance.now();
  const cwd = path.join(FOLDER, name);
  mkdirSync(cwd, { recursive: true });
  await must(cwd, 'spin', ['-a', ...definesOf(name), MODEL]);
  // A mutant is caught early: compiling it well would take longer than running it. COLLAPSE keeps states in a third of the memory.
  const optimized = isSound(name) ? '-O2' : '-O0';
  const defines = ['-DSAFETY', '-DCOLLAPSE', '-DVECTORSZ=1024', `-DMEMLIM=${MEMORY_MIB_MAX}`];
  await must(cwd, 'cc', [optimized, '-w', ...defines, '-o', 'pan', 'pan.c']);
  const output = await must(cwd, './pan', [`-m${DEPTH_MAX}`, '-w22']);
  return {
    output,
    seconds: (performance.now() - began) / 1000,
    trail: existsSync(`${cwd}/arbitration.pml.trail`),
  };
}

async function must(cwd, command, args) {
  const child = spawn(command, args, { cwd, stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (piece) => {
      output += piece;
    });
  }
  const [code, signal] = await once(child, 'close');
  if (code !== 0) throw new Error(`${command} ${args.join(' ')}: ${signal ?? `status ${code}`}\n${output}`);
  return output;
}

/** Prints it; returns whether it is as it should be. */
function tell(name, { output, seconds, trail }) {
  const errors = /errors: (\d+)/.exec(output)?.[1];
  const states = /(\d+(?:\.\d+e\+\d+)?) states, stored/.exec(output)?.[1];
  const whole = !/max search depth too small|out of memory|Search not completed.*\n.*memory/.test(output);
  const found = /pan:\d+: (.*)/.exec(output)?.[1] ?? 'nothing';
  const right = isSound(name) ? errors === '0' && whole : errors !== '0' && errors !== undefined;
  const unreached = name === 'model' ? unreachedOf(output) : [];
  console.log(
    `${right && unreached.length === 0 ? 'ok' : 'WRONG'}  ${name}: ${found}; ${states} states, ${seconds.toFixed(1)} s`,
  );
  for (const line of unreached) console.log(`  never reached: ${line}`);
  if (!right) console.log(output);
  if (trail && (values.trail || isSound(name))) console.log(stepsOf(name));
  return right && unreached.length === 0;
}

/** Lines of the model that no run has come to. A loop that doesn't end has an end that isn't reached. */
function unreachedOf(output) {
  return output
    .split('\n')
    .filter((line) => /^\s+\S+\.pml:\d+, state \d+, /.test(line) && !line.includes('"-end-"'))
    .map((line) => line.trim());
}

function stepsOf(name) {
  const args = ['-t', ...definesOf(name), MODEL];
  const cwd = path.join(FOLDER, name);
  const printed = execFileSync('spin', ['-k', 'arbitration.pml.trail', ...args], { cwd, encoding: 'utf8' });
  return printed
    .split('\n')
    .filter((line) => /^\s*step /.test(line))
    .join('\n');
}
