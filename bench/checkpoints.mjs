/** Checkpoints of a real guest by load and interval, beside the floor and beside the same guest unprotected. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseTrace } from '../dist/testbed/trace.js';
import { monotonicMs } from '../dist/testbed/wait.js';
import { askRepeatedly, Bed, cpuMs, LOADS, roundsPerSecond, setLoad } from './bed.mjs';
import { withCleanup } from './cleanups.mjs';
import { floorPauses, plainCopyMs } from './floor.mjs';
import { median, rounded, summarize } from './statistics.mjs';
import { stepsUs } from './steps.mjs';

/** At this interval the floor is taken, in turns with the protected guest; at this one, too, the agent traces where the time goes. */
const FLOOR_INTERVAL_MS = 100;
const FLOOR_LOADS = ['idle', 'dirty2000'];

const PAGES_FOR_RATIO = 100;

const DISKS = [{ id: 'd0', sizeMiB: 64, cache: 'none', aio: 'native' }];
/** Other guests, at the interval of the floor. */
const OTHER_GUESTS = [
  { name: 'idle, with a disk', load: 'idle', vm: { disks: DISKS } },
  {
    name: 'a disk that is written to',
    load: 'idle',
    vm: { disks: DISKS, services: 'load,diskcheck' },
  },
  { name: `${LOADS.dirty2000.name}, private RAM`, load: 'dirty2000', vm: { sharedRam: false } },
];

/**
 * Returns {qemu, rows, floor}. A row: {load, intervalMs, pauseMs, checkpointsPerSecond, dirtyPages, wireVsRaw, cpuShare, progress, stepsUs, pauses}. `floor` has
 * for idle and dirty2000 {floorMs, pauseMs, aboveMs, dirtyPages, copyMs}.
 */
export async function benchCheckpoints({ quick, qemu, log }) {
  const plan = quick
    ? { loads: ['idle', 'dirty2000', 'requests'], intervals: [100], seconds: 6, rounds: 1, others: [] }
    : {
        loads: Object.keys(LOADS),
        intervals: [25, 100, 500],
        seconds: 8,
        rounds: 3,
        others: OTHER_GUESTS,
      };
  const result = await withCleanup(async (cleanup) => {
    const bed = await Bed.start(cleanup, qemu && { qemu });
    const plain = await measureUnprotected(bed, plan);
    const floor = await measureFloor(cleanup, bed, { ...plan, seconds: plan.seconds / 2 });
    log('the floor is taken');
    const rows = [];
    for (const intervalMs of plan.intervals) {
      rows.push(...(await measureInterval(cleanup, bed, plan, intervalMs, plain)));
      log(`an interval of ${intervalMs} ms is done`);
    }
    return { qemu: await bed.primaryVm.qemuVersion(), rows, floor };
  });
  for (const other of plan.others) result.rows.push(await measureOther(other, plan, qemu));
  return result;
}

/** The loads' own counters, a second: what protection is compared with. */
async function measureUnprotected(bed, { loads, seconds }) {
  const plain = {};
  for (const load of loads) {
    await bed.setLoad(load);
    plain[load] = await progressDuring(bed, load, seconds / 2);
  }
  return plain;
}

async function measureInterval(cleanup, bed, { loads, seconds }, intervalMs, plain) {
  const trace = intervalMs === FLOOR_INTERVAL_MS ? makeTraceFile(cleanup) : null;
  const args = ['--interval', String(intervalMs), ...(trace ? ['--trace', trace] : [])];
  const protection = await bed.protect(cleanup, args);
  const rows = [];
  for (const load of loads) {
    await bed.setLoad(load);
    const fromMs = monotonicMs();
    const row = await measureLoad(bed, protection.primary, load, seconds);
    row.window = [fromMs, monotonicMs()];
    const progress = plain[load] > 0 ? rounded(row.progressPerSecond / plain[load]) : null;
    rows.push({ load: LOADS[load].name, intervalMs, ...row, progress });
  }
  await protection.end();
  const events = trace ? parseTrace(readFileSync(trace, 'utf8')) : [];
  return rows.map(({ window, ...row }) => ({
    ...row,
    ...(trace && { stepsUs: stepsUs(events, ...window) }),
  }));
}

function makeTraceFile(cleanup) {
  const folder = mkdtempSync(path.join(tmpdir(), 'colo-bench-'));
  cleanup.add(() => rmSync(folder, { recursive: true, force: true }));
  return path.join(folder, 'trace.json');
}

async function measureOther({ name, load, vm }, { seconds }, qemu) {
  return withCleanup(async (cleanup) => {
    const bed = await Bed.start(cleanup, { ...vm, ...(qemu && { qemu }) });
    const { primary } = await bed.protect(cleanup, ['--interval', String(FLOOR_INTERVAL_MS)]);
    await bed.setLoad(load);
    const row = await measureLoad(bed, primary, load, seconds);
    // The disk's writes go over the same wire, and are none of the pages.
    const wireVsRaw = vm.disks ? null : row.wireVsRaw;
    return { load: name, intervalMs: FLOOR_INTERVAL_MS, ...row, wireVsRaw, progress: null };
  });
}

/** One load of a protected guest for some seconds. */
async function measureLoad(bed, primary, load, seconds) {
  const before = await snapshot(bed, primary);
  let progressPerSecond = null;
  const pauses = await bed.watch.during(async () => {
    progressPerSecond = await progressDuring(bed, load, seconds);
  });
  const after = await snapshot(bed, primary);
  const tookMs = after.atMs - before.atMs;
  const checkpoints = after.status.checkpoints - before.status.checkpoints;
  const wire = after.status.checkpointBytes.wire - before.status.checkpointBytes.wire;
  const raw = after.status.checkpointBytes.raw - before.status.checkpointBytes.raw;
  const dirtyPages = Math.round(
    (after.status.dirtyPages.total - before.status.dirtyPages.total) / Math.max(1, checkpoints),
  );
  return {
    pauseMs: summarize(pauses),
    checkpoints,
    checkpointsPerSecond: rounded((checkpoints * 1000) / tookMs, 1),
    dirtyPages,
    wireMBps: rounded(wire / tookMs / 1000),
    // Of a few pages most would be the device state, and the ratio would say nothing.
    wireVsRaw: dirtyPages >= PAGES_FOR_RATIO ? rounded(wire / raw, 4) : null,
    cpuShare: {
      primary: rounded((after.cpuMs.primary - before.cpuMs.primary) / tookMs),
      secondary: rounded((after.cpuMs.secondary - before.cpuMs.secondary) / tookMs),
    },
    progressPerSecond,
    pauses: pauses.map((pauseMs) => rounded(pauseMs)),
  };
}

async function snapshot(bed, primary) {
  return {
    atMs: performance.now(),
    status: await primary.status(),
    cpuMs: { primary: cpuMs(primary.pid), secondary: cpuMs(bed.secondary.pid) },
  };
}

/** The load's progress a second in `seconds` of it: rounds or answered requests; null of a guest that does nothing. */
async function progressDuring({ network }, load, seconds) {
  if (load === 'requests') return (await askRepeatedly(network, seconds)).length / seconds;
  if (load !== 'idle') return roundsPerSecond(network, () => sleep(seconds * 1000));
  await sleep(seconds * 1000);
  return null;
}

/** The floor and the protected guest take turns, so that what else the machine does falls on both. */
async function measureFloor(cleanup, bed, { rounds, seconds }) {
  const floors = Object.fromEntries(FLOOR_LOADS.map((load) => [load, { floor: [], ours: [], pages: [] }]));
  const count = Math.ceil((seconds * 1000) / FLOOR_INTERVAL_MS);
  for (let round = 0; round < rounds; round++) {
    for (const load of FLOOR_LOADS) {
      await bed.setLoad(load);
      floors[load].floor.push(...(await floorPauses(bed, { count, intervalMs: FLOOR_INTERVAL_MS })));
    }
    const protection = await bed.protect(cleanup, ['--interval', String(FLOOR_INTERVAL_MS)]);
    for (const load of FLOOR_LOADS) {
      await bed.setLoad(load);
      const { pauses, dirtyPages } = await measureLoad(bed, protection.primary, load, seconds);
      floors[load].ours.push(...pauses);
      floors[load].pages.push(dirtyPages);
    }
    await protection.end();
  }
  for (const load of FLOOR_LOADS) floors[load] = await floorRow(cleanup, floors[load]);
  await setLoad(bed.network, 'idle');
  return floors;
}

async function floorRow(cleanup, { floor, ours, pages }) {
  const dirtyPages = median(pages);
  return {
    floorMs: summarize(floor),
    pauseMs: summarize(ours),
    aboveMs: rounded(median(ours) - median(floor)),
    dirtyPages,
    copyMs: dirtyPages > 0 ? rounded(await plainCopyMs(cleanup, dirtyPages)) : 0,
  };
}
