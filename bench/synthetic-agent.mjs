/**
 * One synthetic VM and the primary's engine at work on it, in a process as an agent is one: `synthetic-agent.mjs JSON` with {program, memoryMiB, pages,
 * intervalMs, checkpoints, port}. Each checkpoint is captured as in the pause, and encoded and sent to `port`, where somebody takes all that comes.
 * Prints a line of JSON: {pausesMs, scanUs, copyUs, cpuShare, memoryMiB}.
 */
import { randomBytes } from 'node:crypto';
import { readFileSync, writeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { native } from '../dist/native/binding.js';
import { withCleanup } from './cleanups.mjs';
import { median } from './statistics.mjs';
import { SyntheticGuest } from './synthetic.mjs';

/** As large as that of a small real VM. */
const VMSTATE_BYTES = 30_000;
/** The engine's own memory comes to its steady size in these. */
const WARM_UP = 5;

const plan = JSON.parse(process.argv[2]);
const result = await withCleanup(run);
process.stdout.write(`${JSON.stringify(result)}\n`, () => process.exit(0));

async function run(cleanup) {
  const guest = await SyntheticGuest.start(cleanup, plan.memoryMiB, plan.program);
  const vmstate = native.makeMemoryFile('vmstate');
  writeSync(vmstate.writeOnlyFd, Buffer.alloc(VMSTATE_BYTES, 1));
  const engine = new native.PrimaryEngine({
    pid: guest.pid,
    blocks: [guest.block],
    threads: 2,
    shadow: true,
    tracker: 'userfaultfd',
    stagingResidentBytes: 64 * 1024 * 1024,
    scrubSliceBytes: 0,
    disks: [],
  });
  cleanup.add(() => engine.close());
  await engine.protect();
  await engine.connect('127.0.0.1', plan.port, randomBytes(16), 1, 1, null);
  await engine.sync(0, () => {});
  const captures = [];
  const pausesMs = [];
  let began = null;
  for (let epoch = 1; epoch <= WARM_UP + plan.checkpoints; epoch++) {
    if (epoch === WARM_UP + 1) began = { cpu: process.cpuUsage(), atMs: performance.now() };
    const next = sleep(plan.intervalMs);
    await guest.write(plan.pages);
    const stoppedAtMs = performance.now();
    const capture = await engine.capture(epoch, null);
    if (began) {
      pausesMs.push(performance.now() - stoppedAtMs);
      captures.push(capture);
    }
    await engine.transmit(epoch, vmstate.readWriteFd);
    await next;
  }
  const { user, system } = process.cpuUsage(began.cpu);
  return {
    pausesMs,
    scanUs: median(captures.map(({ scanUs }) => scanUs)),
    copyUs: median(captures.map(({ copyUs }) => copyUs)),
    cpuShare: (user + system) / 1000 / (performance.now() - began.atMs),
    memoryMiB: ownMemoryMiB(),
  };
}

/** Without the guest's RAM, which is mapped here, too, but exists once. */
function ownMemoryMiB() {
  const kib = /^RssAnon:\s+(\d+) kB/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1];
  return Math.round(Number(kib) / 1024);
}
