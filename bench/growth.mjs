/**
 * How pause, CPU and memory of the primary's agent grow: with the guest's RAM, with the dirty pages of a checkpoint, and with the number of VMs on one
 * host. Synthetic guests, and the engine that protects real ones; the pause here is the engine's part of it, without QEMU's `stop`, save and `cont`.
 */
import { createServer } from 'node:net';
import { freemem } from 'node:os';
import path from 'node:path';
import { run } from '../dist/testbed/child.js';
import { DIES_WITH_US } from './bed.mjs';
import { nativeProgram } from './build.mjs';
import { withCleanup } from './cleanups.mjs';
import { median, rounded, summarize } from './statistics.mjs';

const AGENT = path.join(import.meta.dirname, 'synthetic-agent.mjs');
const INTERVAL_MS = 100;
/** A guest's RAM exists twice, as itself and as the shadow; an agent has some memory beside it. */
const memoryNeededMiB = ({ memoryMiB, vms }) => vms * (2 * memoryMiB + 300);

function plans(quick) {
  const usual = { memoryMiB: 1024, pages: 2000, vms: 1, checkpoints: quick ? 20 : 40 };
  const [memories, pages, vms] = quick
    ? [
        [256, 2048],
        [100, 10_000],
        [1, 4],
      ]
    : [
        [256, 1024, 4096, 8192],
        [100, 1000, 5000, 20_000, 50_000],
        [1, 2, 4, 8, 16],
      ];
  return [
    ...memories.map((memoryMiB) => ({ ...usual, axis: 'RAM', memoryMiB })),
    ...pages.map((count) => ({ ...usual, axis: 'dirty pages', pages: count })),
    ...vms.map((count) => ({ ...usual, axis: 'VMs', vms: count, memoryMiB: 256, pages: 500 })),
  ];
}

/** Returns {rows}: {axis, name, memoryMiB, pages, vms, pauseMs, scanUs, copyUs, cpuShare, agentMiB}, or a `reason` why a row has no figures. */
export async function benchGrowth({ quick, log }) {
  return withCleanup(async (cleanup) => {
    const port = await openSink(cleanup);
    const rows = [];
    for (const plan of plans(quick)) {
      rows.push(await measure(plan, port));
      log(`growth: ${rows.at(-1).name}`);
    }
    return { rows };
  });
}

async function measure(plan, port) {
  const { axis, memoryMiB, pages, vms, checkpoints } = plan;
  const name = `${vms} x ${memoryMiB} MiB, ${pages} pages`;
  const row = { axis, name, memoryMiB, pages, vms };
  const neededMiB = memoryNeededMiB(plan);
  const freeMiB = Math.floor(freemem() / 1024 / 1024);
  if (neededMiB > freeMiB) return { ...row, reason: `needs ${neededMiB} MiB, and ${freeMiB} are free` };
  const program = path.resolve(nativeProgram('synthetic_guest'));
  const argument = JSON.stringify({ program, memoryMiB, pages, checkpoints, intervalMs: INTERVAL_MS, port });
  const answers = await Promise.all(
    Array.from({ length: vms }, async () =>
      JSON.parse(await run(...DIES_WITH_US, process.execPath, AGENT, argument)),
    ),
  );
  const of = (field) => median(answers.map((answer) => answer[field]));
  return {
    ...row,
    pauseMs: summarize(answers.flatMap(({ pausesMs }) => pausesMs)),
    scanUs: of('scanUs'),
    copyUs: of('copyUs'),
    // Of all agents together: what the host pays.
    cpuShare: rounded(answers.reduce((sum, { cpuShare }) => sum + cpuShare, 0)),
    agentMiB: of('memoryMiB'),
  };
}

/** Takes whatever comes, and forgets it: the standby's side is not what is measured here. */
async function openSink(cleanup) {
  const sockets = new Set();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket)).on('error', () => socket.destroy());
    socket.resume();
  });
  await new Promise((resolve, reject) => server.once('error', reject).listen(0, '127.0.0.1', resolve));
  cleanup.add(() => {
    server.close();
    for (const socket of sockets) socket.destroy();
  });
  return server.address().port;
}
