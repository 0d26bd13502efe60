/**
 * `npm run test:soak [-- MINUTES]`: checkpoints of a busy guest for ten minutes; the resident memory of both agents must not grow after the first
 * minute. Fails when it does.
 */
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { TestAgent } from '../dist/testbed/agents.js';
import { Cleanup } from '../dist/testbed/cleanup.js';
import { TestVm } from '../dist/testbed/vm.js';

const minutes = Number(process.argv[2] ?? 10);
/** What the garbage collector and the allocator may swing by. */
const GROWTH_MIB_MAX = 24;

const cleanup = new Cleanup();
try {
  await soak();
} finally {
  await cleanup.run();
}

async function soak() {
  const guest = { guest: 'linux', append: 'colo.dirty=1000,50' };
  const primaryVm = cleanup.own(await TestVm.start({ name: 'primary', ...guest }));
  await primaryVm.waitConsole('GUEST-READY', 120_000);
  const standbyVm = cleanup.own(await TestVm.start({ name: 'standby', paused: true, ...guest }));
  const secondary = cleanup.own(
    await TestAgent.start('secondary', [
      '--vm',
      'soak',
      '--qmp',
      standbyVm.qmpPath,
      '--listen',
      '127.0.0.1:0',
    ]),
  );
  const { listen } = await secondary.status();
  const primary = cleanup.own(
    await TestAgent.start('primary', ['--vm', 'soak', '--qmp', primaryVm.qmpPath, '--peer', listen]),
  );
  await primary.waitState('PROTECTED', 300_000);

  const rows = [];
  for (let minute = 0; minute <= minutes; minute++) {
    if (minute > 0) await sleep(60_000);
    const status = await primary.status();
    const row = {
      minute,
      state: status.state,
      checkpoints: status.checkpoints,
      primaryMiB: rssMiB(primary.pid),
      secondaryMiB: rssMiB(secondary.pid),
    };
    rows.push(row);
    console.log(JSON.stringify({ ...row, pauseMs: status.pauseMs }));
    if (status.state !== 'PROTECTED') throw new Error(`the guest is ${status.state}: ${status.reason}`);
  }
  const settled = rows[Math.min(1, rows.length - 1)];
  const last = rows.at(-1);
  for (const side of ['primaryMiB', 'secondaryMiB']) {
    const growth = last[side] - settled[side];
    console.log(
      `${side}: ${settled[side]} after the first minute, ${last[side]} at the end (${growth >= 0 ? '+' : ''}${growth})`,
    );
    if (growth > GROWTH_MIB_MAX) process.exitCode = 1;
  }
}

function rssMiB(pid) {
  const kib = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1];
  return Math.round(Number(kib) / 1024);
}
