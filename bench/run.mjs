/** `npm run bench`: what protection costs, beside its limits and beside QEMU's in-tree COLO. bench/options.mjs explains the command line. */
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { benchCheckpoints } from './checkpoints.mjs';
import { cleanUpOnSignals } from './cleanups.mjs';
import { benchClient } from './client.mjs';
import { compareRuns } from './compare.mjs';
import { benchDisks, diskLines } from './disk.mjs';
import { benchFailover } from './failover.mjs';
import { benchGrowth } from './growth.mjs';
import { benchNative, nativeText } from './native.mjs';
import { parseOptions, USAGE, UsageError } from './options.mjs';
import { benchPeer, peerMissing } from './peer.mjs';
import { writePlots } from './plots.mjs';
import { writeReadme } from './readme.mjs';
import { summaryOf } from './summary.mjs';
import {
  checkpointLines,
  clientLines,
  compareLines,
  failoverLines,
  growthLines,
  peerLines,
  summaryLines,
} from './text.mjs';

const EXIT_USAGE = 64; // sysexits.h
const RESULTS = path.join(import.meta.dirname, 'results');
const PEER_CACHE = '.cache/matrix/qemu'; // shared with scripts/matrix.mjs

const options = optionsOrExit();
const earlier = options.compare && JSON.parse(readFileSync(options.compare, 'utf8'));
cleanUpOnSignals();

const SECTIONS = {
  native: { measure: () => benchNative(options), lines: (rows) => rows.map(nativeText) },
  checkpoints: { measure: () => benchCheckpoints({ ...options, log }), lines: checkpointLines },
  client: { measure: () => benchClient({ ...options, log }), lines: clientLines },
  peer: { measure: measurePeer, lines: peerLines },
  failover: { measure: () => benchFailover({ ...options, log }), lines: failoverLines },
  growth: { measure: () => benchGrowth({ ...options, log }), lines: growthLines },
  disks: { measure: measureDisks, lines: diskLines },
};

const beganAtMs = performance.now();
const run = {
  date: new Date().toISOString().slice(0, 10),
  commit: commitOf(),
  machine: `${os.cpus().length} x ${os.cpus()[0].model.trim()}, Linux ${os.release()}`,
  loadBefore: os.loadavg()[0],
  node: process.versions.node,
  quick: options.quick,
  seconds: {},
  errors: {},
};
print(`${run.machine}; Node.js ${run.node}; load before the start: ${run.loadBefore.toFixed(1)}`);
for (const name of options.sections) await measureSection(name);
run.qemu = run.checkpoints?.qemu ?? run.client?.qemu ?? run.failover?.qemu ?? null;
run.summary = summaryOf(run);

print(...summaryLines(run.summary));
if (options.json) writeFileSync(options.json, `${JSON.stringify(run, null, 2)}\n`);
for (const file of writePlots(run, RESULTS)) log(`wrote ${path.relative('.', file)}`);
if (earlier) print(...compareLines(options.compare, compareRuns(earlier, run)));
if (options.readme) writeReadme(run);
if (Object.keys(run.errors).length > 0) {
  print('', ...Object.entries(run.errors).map(([name, message]) => `${name} FAILED: ${message}`));
  process.exitCode = 1;
}
log(`took ${Math.round((performance.now() - beganAtMs) / 1000)} s`);

/** One section that fails costs its own figures, not those of the others. */
async function measureSection(name) {
  const { measure, lines } = SECTIONS[name];
  const sectionBeganAtMs = performance.now();
  try {
    run[name] = await measure();
    print('', ...lines(run[name]));
  } catch (error) {
    run.errors[name] = error.message;
    log(`${name} failed: ${error.stack}`);
  }
  run.seconds[name] = Math.round((performance.now() - sectionBeganAtMs) / 1000);
}

function measureDisks() {
  return benchDisks({
    rounds: options.quick ? 3 : 5,
    writes: options.quick ? { 1: 2000, 32: 5000 } : { 1: 4000, 32: 20_000 },
    qemu: options.qemu,
  });
}

/** Where no QEMU with in-tree COLO can be had, that is what the table says. */
async function measurePeer() {
  let peer;
  try {
    peer = findPeer();
  } catch (error) {
    return peerMissing(`no QEMU with in-tree COLO: ${error.message.split('\n')[0]}`);
  }
  return benchPeer({ ...options, ...peer, log });
}

/** The QEMU that has in-tree COLO, and its version. */
function findPeer() {
  if (!options.peerQemu) {
    log('QEMU of Debian sid is fetched unless it is here already');
    execFileSync('sh', ['scripts/newer-qemu.sh', 'sid', PEER_CACHE], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
  }
  const peerQemu = options.peerQemu ?? path.resolve(PEER_CACHE, 'qemu-sid');
  const text = execFileSync(peerQemu, ['--version'], { encoding: 'utf8' });
  return { peerQemu, peerVersion: /version (\S+)/.exec(text)?.[1] ?? text.trim() };
}

/** Null where the sources are no git checkout. */
function commitOf() {
  try {
    const git = (...args) =>
      execFileSync('git', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
    const changed = git('status', '--porcelain', '--', 'src', 'native', 'guest', 'bench') !== '';
    return git('rev-parse', '--short', 'HEAD') + (changed ? ' and changes' : '');
  } catch {
    return null;
  }
}

function optionsOrExit() {
  try {
    return parseOptions(process.argv.slice(2));
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    console.error(`${error.message}\n${USAGE}`);
    process.exit(EXIT_USAGE);
  }
}

function print(...lines) {
  console.log(lines.join('\n'));
}

/** Beside the tables: somebody waits half an hour for them. */
function log(text) {
  console.error(`bench: ${text}`);
}
