/**
 * `npm run soak [-- --cycles N] [--minutes N]`: N times (100) protection is begun and ended, half of them by new primary agents with one secondary agent, half the
 * other way round; then checkpoints for so many minutes (10). On a real QEMU with a NIC and a disk whose guest writes to its memory, its disk and its network all the time.
 * Memory, descriptors, threads and mappings of all four processes and what both QEMUs have in them must be flat (scripts/soak-judge.mjs says what that
 * is). Exits 0 only when all of them are.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { QmpClient } from '../dist/qmp/client.js';
import { TestAgent } from '../dist/testbed/agents.js';
import { Cleanup } from '../dist/testbed/cleanup.js';
import { standbyDisks } from '../dist/testbed/disks.js';
import { TestNetwork } from '../dist/testbed/network.js';
import { TestVm } from '../dist/testbed/vm.js';
import { judge, SAMPLES_MIN } from './soak-judge.mjs';
import { fdKinds, processFigures, qemuFigures } from './soak-samples.mjs';

const CHECKPOINTS_PER_CYCLE = 5;
const SAMPLE_INTERVAL_MS = 5_000;
const PROTECT_MS = 300_000;
const STOP_MS = 60_000;
const TELL_EVERY = 10;
/** The machine may do other things: what is looked for here are leaks. */
const PATIENT = ['--peer-timeout', '20000', '--stall-timeout', '60000'];

const wanted = options();
const samples = [];
let newest = {};
const cleanup = new Cleanup();
try {
  report(await soak());
} finally {
  await cleanup.run();
}

function options() {
  const { values } = parseArgs({
    options: { cycles: { type: 'string', default: '100' }, minutes: { type: 'string', default: '10' } },
  });
  const cycles = Number(values.cycles);
  const minutes = Number(values.minutes);
  // As many in each half, and of checkpoints, as the judge needs; or none at all, but not of both.
  const enough = (count, least) => count === 0 || count >= least;
  if (
    Number.isInteger(cycles) &&
    enough(cycles, 2 * SAMPLES_MIN) &&
    enough(minutes, 1) &&
    cycles + minutes > 0
  )
    return { cycles, minutes };
  console.error(
    `--cycles takes a number from ${2 * SAMPLES_MIN} on, --minutes one from 1 on; either, but not both, may be 0`,
  );
  process.exit(64);
}

async function soak() {
  const world = await begin();
  await cyclesOfPrimaries(world, Math.ceil(wanted.cycles / 2));
  await startPrimary(world);
  await cyclesOfSecondaries(world, Math.floor(wanted.cycles / 2));
  await checkpoints(world, wanted.minutes * 60_000);
  return world;
}

async function begin() {
  const network = cleanup.own(await TestNetwork.create());
  const guest = {
    guest: 'linux',
    network,
    append: 'colo.services=counter,announce,diskcheck colo.dirty=500,20',
  };
  const disks = [{ id: 'disk0', sizeMiB: 16 }];
  const start = async (name, more) =>
    cleanup.own(await TestVm.start({ name, ...guest, nics: [{ tap: await network.addTap() }], ...more }));
  const primaryVm = await start('primary', { disks });
  await primaryVm.waitConsole('GUEST-READY', PROTECT_MS);
  const standbyVm = await start('standby', { disks: standbyDisks(disks), paused: true });
  const world = { primaryVm, standbyVm, primary: null, secondary: null, listen: '127.0.0.1:0' };
  world.primaryMonitor = await monitorOf(primaryVm);
  world.standbyMonitor = await monitorOf(standbyVm);
  for (const side of ['secondary', 'primary']) cleanup.add(() => world[side]?.destroy());
  await startSecondary(world);
  return world;
}

async function monitorOf(vm) {
  const monitor = await QmpClient.connect(vm.testQmpPath);
  cleanup.add(() => monitor.close());
  return monitor;
}

/** It keeps the first one's port. */
async function startSecondary(world) {
  const args = ['--vm', 'soak', '--qmp', world.standbyVm.qmpPath, '--listen', world.listen, ...PATIENT];
  world.secondary = await TestAgent.start('secondary', args);
  world.listen = (await world.secondary.status()).listen;
}

async function startPrimary(world) {
  const args = ['--vm', 'soak', '--qmp', world.primaryVm.qmpPath, '--peer', world.listen, ...PATIENT];
  world.primary = await TestAgent.start('primary', args);
  await waitProtected(world.primary);
}

/** And for some checkpoints more, so that everything that belongs to one has been used. */
async function waitProtected(primary) {
  await primary.waitStatus(
    `${CHECKPOINTS_PER_CYCLE} checkpoints`,
    PROTECT_MS,
    ({ state, epoch }) => state === 'PROTECTED' && epoch >= CHECKPOINTS_PER_CYCLE,
  );
}

async function stop(world, side) {
  const agent = world[side];
  await agent.command('stop');
  const { code } = await Promise.race([agent.exited, sleep(STOP_MS, { code: null }, { ref: false })]);
  if (code !== 0)
    throw new Error(`the ${side} agent was stopped and ended with ${code}:\n${agent.log().slice(-4000)}`);
  await agent.destroy();
  world[side] = null;
}

async function cyclesOfPrimaries(world, cycles) {
  for (let cycle = 1; cycle <= cycles; cycle++) {
    await startPrimary(world);
    await sample(world, 'protected by the next primary');
    await stop(world, 'primary');
    await world.secondary.waitState('STARTING', STOP_MS);
    await sample(world, 'left by a primary');
    if (cycle % TELL_EVERY === 0) tell(`cycle ${cycle}`);
  }
}

async function cyclesOfSecondaries(world, cycles) {
  for (let cycle = 1; cycle <= cycles; cycle++) {
    await stop(world, 'secondary');
    await world.primary.waitState('EXPOSED', STOP_MS);
    await sample(world, 'left by a secondary');
    await startSecondary(world);
    await waitProtected(world.primary);
    await sample(world, 'protected by the next secondary');
    if (cycle % TELL_EVERY === 0) tell(`cycle ${wanted.cycles - cycles + cycle}`);
  }
}

async function checkpoints(world, forMs) {
  const endMs = performance.now() + forMs;
  let last = (await world.primary.status()).checkpoints;
  for (let count = 1; performance.now() < endMs || (forMs > 0 && count <= SAMPLES_MIN); count++) {
    await sleep(SAMPLE_INTERVAL_MS);
    const { state, reason, checkpoints } = await world.primary.waitStatus(
      'more checkpoints',
      PROTECT_MS,
      (status) => status.state !== 'PROTECTED' || status.checkpoints > last,
    );
    if (state !== 'PROTECTED') throw new Error(`the guest is ${state}: ${reason}`);
    last = checkpoints;
    await sample(world, 'checkpoints');
    if (count % TELL_EVERY === 0) tell(`checkpoint ${checkpoints}`);
  }
}

async function sample(world, when) {
  const reading = {
    "primary's QEMU": qemuFigures(world.primaryVm.pid, world.primaryMonitor),
    "standby's QEMU": qemuFigures(world.standbyVm.pid, world.standbyMonitor),
    ...(world.primary && { 'primary agent': processFigures(world.primary.pid) }),
    ...(world.secondary && { 'secondary agent': processFigures(world.secondary.pid) }),
  };
  const figures = Object.fromEntries(
    await Promise.all(Object.entries(reading).map(async ([who, of]) => [who, await of])),
  );
  newest = figures;
  for (const [who, of] of Object.entries(figures)) samples.push({ who, when, figures: of });
}

function tell(where) {
  const parts = Object.entries(newest).map(([who, { fds, rssMiB }]) => `${who} ${fds} fds, ${rssMiB} MiB`);
  console.log(`${where}: ${parts.join('; ')}`);
}

function report(world) {
  const rows = judge(samples);
  for (const { series, measure, first, last, max, flat } of rows)
    console.log(`${flat ? 'ok  ' : 'GREW'} ${series}: ${measure} ${first} -> ${last} (at most +${max})`);
  const grown = rows.filter(({ flat }) => !flat);
  if (grown.some(({ measure }) => measure === 'fds'))
    for (const owner of ['primaryVm', 'standbyVm', 'primary', 'secondary'])
      console.log(`descriptors of ${owner} at the end: ${fdKinds(world[owner].pid)}`);
  console.log(grown.length === 0 ? 'all flat' : `${grown.length} of ${rows.length} grew`);
  process.exitCode = grown.length === 0 ? 0 : 1;
}
