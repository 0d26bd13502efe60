/**
 * What protection costs the guest's disk: random writes of 4 KiB, by the guest's own clock and the host's, unprotected, protected by us, and with a QEMU mirror
 * straight to an NBD server that is 1 ms away. One guest, one disk; the three take turns, so that what else the machine does falls on all of them.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { QmpClient } from '../dist/qmp/client.js';
import { TestAgent } from '../dist/testbed/agents.js';
import { Child, run } from '../dist/testbed/child.js';
import { Cleanup } from '../dist/testbed/cleanup.js';
import { benchDisk } from '../dist/testbed/disk-clients.js';
import { standbyDisks } from '../dist/testbed/disks.js';
import { TestNetwork } from '../dist/testbed/network.js';
import { TestVm } from '../dist/testbed/vm.js';
import { monotonicMs, waitFor } from '../dist/testbed/wait.js';
import { openDelayRelay } from './delay-relay.mjs';

const MIRROR_DELAY_MS = 1;
const DISKS = [{ id: 'd0', sizeMiB: 64, cache: 'none', aio: 'native' }];
const DEPTHS = [1, 32];
const TIMEOUT_MS = 120_000;

/** Returns one row a mode and depth, medians over all rounds: {mode, depth, p50Us, p99Us, iops, hostIops}. */
export async function benchDisks({ rounds, writes, qemu }) {
  const cleanup = new Cleanup();
  try {
    const bed = await prepare(cleanup, qemu);
    const modes = {
      unprotected: async () => async () => {},
      protected: protect,
      'mirror, 1 ms away': mirror,
    };
    const samples = [];
    for (let round = 0; round < rounds; round++) {
      for (const [mode, begin] of Object.entries(modes)) {
        const end = await begin(bed);
        for (const depth of DEPTHS)
          samples.push({ mode, depth, ...(await measure(bed, depth, writes[depth])) });
        await end();
      }
    }
    return Object.keys(modes).flatMap((mode) => DEPTHS.map((depth) => summarize(samples, mode, depth)));
  } finally {
    await cleanup.run();
  }
}

async function prepare(cleanup, qemu) {
  const network = cleanup.own(await TestNetwork.create());
  const options = async (name) => ({
    name,
    guest: 'linux',
    sharedRam: true,
    network,
    nics: [{ tap: await network.addTap() }],
    append: 'colo.services=diskbench',
    ...(qemu && { qemu }),
  });
  const primaryVm = cleanup.own(await TestVm.start({ ...(await options('primary')), disks: DISKS }));
  await primaryVm.waitConsole('GUEST-READY', TIMEOUT_MS);
  const standby = { ...(await options('standby')), disks: standbyDisks(DISKS), paused: true };
  const standbyVm = cleanup.own(await TestVm.start(standby));
  const secondaryArgs = ['--vm', 'bench', '--qmp', standbyVm.qmpPath, '--listen', '127.0.0.1:0'];
  const secondary = cleanup.own(await TestAgent.start('secondary', secondaryArgs));
  const { listen } = await secondary.status();
  const folder = mkdtempSync(path.join(tmpdir(), 'colo-bench-'));
  cleanup.add(() => rmSync(folder, { recursive: true }));
  const bed = { network, primaryVm, listen, remotePath: await startServer(cleanup, folder) };
  await measure(bed, 32, 5000); // the first writes find an image without blocks
  return bed;
}

/** An NBD server with a file as long as the disk, behind a relay: resolves with the relay's path. */
async function startServer(cleanup, folder) {
  const [image, socket, remote] = ['mirror', 'nbd', 'remote'].map((name) => path.join(folder, name));
  await run('truncate', '-s', `${DISKS[0].sizeMiB}M`, image);
  const command = ['qemu-nbd', '--persistent', '--format=raw', '--cache=none', '--aio=native'];
  const server = await Child.start([...command, `--socket=${socket}`, image], {
    stderrPath: path.join(folder, 'stderr'),
  });
  cleanup.add(() => server.stop());
  cleanup.add(await openDelayRelay(remote, socket, MIRROR_DELAY_MS));
  return remote;
}

async function protect({ primaryVm, listen }) {
  const args = ['--vm', 'bench', '--qmp', primaryVm.qmpPath, '--peer', listen];
  const primary = await TestAgent.start('primary', args);
  await primary.waitState('PROTECTED', TIMEOUT_MS);
  return async () => {
    await primary.command('stop');
    await primary.exited;
    await primary.destroy();
  };
}

async function mirror({ primaryVm, remotePath }) {
  const monitor = await QmpClient.connect(primaryVm.testQmpPath);
  const [disk] = await monitor.execute('query-block');
  const jobStatus = async () =>
    (await monitor.execute('query-jobs')).find(({ id }) => id === 'mirror')?.status;
  await monitor.execute('blockdev-add', {
    'node-name': 'mirror-target',
    driver: 'nbd',
    server: { type: 'unix', path: remotePath },
  });
  await monitor.execute('blockdev-mirror', {
    'job-id': 'mirror',
    device: disk.inserted['node-name'],
    target: 'mirror-target',
    sync: 'none',
    'copy-mode': 'write-blocking',
    'on-target-error': 'report',
  });
  await waitFor('mirror that is ready', TIMEOUT_MS, async () => (await jobStatus()) === 'ready');
  return async () => {
    await monitor.execute('block-job-cancel', { device: 'mirror' }); // not by force: see src/vm/disk-mirror.ts
    await waitFor('end of the mirror', TIMEOUT_MS, async () => (await jobStatus()) === undefined);
    await monitor.execute('blockdev-del', { 'node-name': 'mirror-target' });
    monitor.close();
  };
}

async function measure({ network }, depth, writes) {
  const beganAtMs = monotonicMs();
  const figures = await benchDisk(network, depth, writes, TIMEOUT_MS);
  return { ...figures, hostIops: Math.round((writes * 1000) / (monotonicMs() - beganAtMs)) };
}

function summarize(samples, mode, depth) {
  const own = samples.filter((sample) => sample.mode === mode && sample.depth === depth);
  const median = (name) => own.map((sample) => sample[name]).sort((a, b) => a - b)[own.length >> 1];
  const names = ['p50Us', 'p99Us', 'iops', 'hostIops'];
  return { mode, depth, ...Object.fromEntries(names.map((name) => [name, median(name)])) };
}

/** The rows as a table for a terminal. */
export function diskLines(rows) {
  const columns = (values) => values.map((value) => String(value).padStart(11)).join('');
  return [
    '',
    "The guest's disk: random writes of 4 KiB (medians; `host/s` by the host's clock, which also sees the pauses)",
    '                           depth     p50 us     p99 us   writes/s     host/s',
    ...rows.map(({ mode, depth, p50Us, p99Us, iops, hostIops }) => {
      return `${mode.padEnd(27)}${String(depth).padStart(5)}${columns([p50Us, p99Us, iops, hostIops])}`;
    }),
  ];
}
