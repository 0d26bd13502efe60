/**
 * The pause of a real guest: idle, with a disk, and with some 3,000 dirty pages a checkpoint, everything (guest, two QEMUs, two agents) on this machine. The pause is
 * taken from QEMU's own STOP and RESUME events; the rows come from one run, one after the other.
 */
import { TestAgent } from '../dist/testbed/agents.js';
import { Cleanup } from '../dist/testbed/cleanup.js';
import { standbyDisks } from '../dist/testbed/disks.js';
import { TestVm } from '../dist/testbed/vm.js';

const DISKS = [{ id: 'd0', sizeMiB: 64, cache: 'none', aio: 'native' }];
const LOADS = [
  { name: 'idle', append: '' },
  { name: 'idle, with a disk', append: '', disks: DISKS },
  { name: 'a disk that is written to', append: 'colo.services=diskcheck', disks: DISKS },
  { name: '3,000 pages / 100 ms', append: 'colo.dirty=3000,100' },
  { name: '3,000 pages / 100 ms, private RAM', append: 'colo.dirty=3000,100', privateRam: true },
];

/** Returns one row a load: {name, checkpoints, pauseMs, pauseStepsUs, dirtyPages, checkpointMs, ...}. */
export async function benchPause({ checkpoints, qemu, extraPrimaryArgs = [] }) {
  const rows = [];
  for (const load of LOADS) rows.push(await measure(load, { checkpoints, qemu, extraPrimaryArgs }));
  return rows;
}

async function measure(load, { checkpoints, qemu, extraPrimaryArgs }) {
  const cleanup = new Cleanup();
  try {
    const vmOptions = {
      guest: 'linux',
      sharedRam: !load.privateRam,
      append: load.append,
      ...(load.disks && { disks: load.disks }),
      ...(qemu && { qemu }),
    };
    const primaryVm = cleanup.own(await TestVm.start({ name: 'primary', ...vmOptions }));
    await primaryVm.waitConsole('GUEST-READY', 120_000);
    const standbyOptions = { ...vmOptions, ...(load.disks && { disks: standbyDisks(load.disks) }) };
    const standbyVm = cleanup.own(await TestVm.start({ name: 'standby', paused: true, ...standbyOptions }));
    const secondary = cleanup.own(
      await TestAgent.start('secondary', [
        '--vm',
        'bench',
        '--qmp',
        standbyVm.qmpPath,
        '--listen',
        '127.0.0.1:0',
      ]),
    );
    const { listen } = await secondary.status();
    const primary = cleanup.own(
      await TestAgent.start('primary', [
        '--vm',
        'bench',
        '--qmp',
        primaryVm.qmpPath,
        '--peer',
        listen,
        ...extraPrimaryArgs,
      ]),
    );
    const status = await primary.waitStatus(
      `${checkpoints} checkpoints`,
      600_000,
      (now) => now.checkpoints >= checkpoints,
    );
    return {
      name: load.name,
      qemuVersion: await primaryVm.qemuVersion(),
      ...status,
      standby: await secondary.status(),
    };
  } finally {
    await cleanup.run();
  }
}
