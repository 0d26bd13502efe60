/** QEMU's in-tree COLO (docs/COLO-FT.rst in QEMU's tree): two VMs, a migration with the capability x-colo, and, when asked for, its net filters. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { TestNetwork } from '../dist/testbed/network.js';
import { waitFor } from '../dist/testbed/wait.js';
import { startGuest, TIMEOUT_MS } from './bed.mjs';
import { PauseWatch } from './pauses.mjs';

/** In the VMs' own network namespace, where nobody else listens. */
const ADDRESS = 'tcp:127.0.0.1:7800';
/** The first checkpoints carry all of RAM; the steady state comes after them. */
const FIRST_CHECKPOINTS = 5;

/** `vm`: options of both VMs for startGuest. Resolves when it makes checkpoints: {network, watch, assertAlive}. Rejects with the reason when it doesn't come to that. */
export async function startPeer(cleanup, { vm, intervalMs, filters }) {
  const network = cleanup.own(await TestNetwork.create());
  const primaryVm = await startGuest(cleanup, network, 'peer-primary', vm);
  // On the other bridge: what the secondary itself sends must not reach the client.
  const secondaryVm = await startGuest(cleanup, network, 'peer-secondary', {
    ...vm,
    bridge: 1,
    boots: false,
    extraArgs: ['-incoming', ADDRESS],
  });
  const watch = cleanup.own(await PauseWatch.open(primaryVm));
  const secondary = cleanup.own(await PauseWatch.open(secondaryVm));
  const assertAlive = async () => {
    for (const vm of [primaryVm, secondaryVm]) {
      if (!vm.running) throw new Error(`the QEMU ${vm.name} has ended: ${lastLine(vm.stderr())}`);
    }
    const { status, 'error-desc': description } = await watch.monitor.execute('query-migrate');
    if (status !== 'colo')
      throw new Error(
        `in-tree COLO is over: status ${status}, ${description ?? (lastLine(primaryVm.stderr()) || 'no reason given')}`,
      );
  };
  if (filters) await installFilters(cleanup, watch.monitor, secondary.monitor);
  for (const { monitor } of [watch, secondary]) {
    await monitor.execute('migrate-set-capabilities', {
      capabilities: ['return-path', 'x-colo'].map((capability) => ({ capability, state: true })),
    });
  }
  await watch.monitor.execute('migrate-set-parameters', { 'x-checkpoint-delay': intervalMs });
  await watch.monitor.execute('migrate', { uri: ADDRESS });
  await waitFor('checkpoints of in-tree COLO', TIMEOUT_MS, async () => {
    if (watch.monitor.closed) await assertAlive();
    const { status } = await watch.monitor.execute('query-migrate');
    if (['failed', 'cancelled', 'completed'].includes(status) || !secondaryVm.running) await assertAlive();
    return status === 'colo' && watch.pauses.length > FIRST_CHECKPOINTS;
  });
  return { network, watch, assertAlive };
}

function lastLine(text) {
  return text.trim().split('\n').at(-1) ?? '';
}

/**
 * Primary: what the guest receives is mirrored to the secondary; what it sends goes to colo-compare and leaves when the secondary has sent the same.
 * Secondary: it receives what was mirrored, its output goes to colo-compare, and its TCP sequence numbers are rewritten to the primary's.
 */
async function installFilters(cleanup, primary, secondary) {
  const folder = mkdtempSync(path.join(tmpdir(), 'colo-peer-'));
  cleanup.add(() => rmSync(folder, { recursive: true, force: true }));
  const socket = (monitor, id, name, server) =>
    monitor.execute('chardev-add', {
      id,
      backend: {
        type: 'socket',
        data: {
          addr: { type: 'unix', data: { path: path.join(folder, name) } },
          server,
          ...(server && { wait: false }),
        },
      },
    });
  const filter = (monitor, type, id, properties) =>
    monitor.execute('object-add', {
      'qom-type': type,
      id,
      netdev: 'net0',
      vnet_hdr_support: true,
      ...properties,
    });
  for (const [id, name, server] of [
    ['mirror0', 'mirror', true],
    ['compare1', 'secondary', true],
    ['compare0', 'primary', true],
    ['compare0-0', 'primary', false],
    ['compare_out', 'out', true],
    ['compare_out0', 'out', false],
  ])
    await socket(primary, id, name, server);
  await socket(secondary, 'red0', 'mirror', false);
  await socket(secondary, 'red1', 'secondary', false);
  await filter(secondary, 'filter-redirector', 'f1', { queue: 'tx', indev: 'red0' });
  await filter(secondary, 'filter-redirector', 'f2', { queue: 'rx', outdev: 'red1' });
  await filter(secondary, 'filter-rewriter', 'rew0', { queue: 'all' });
  await primary.execute('object-add', { 'qom-type': 'iothread', id: 'compare-thread' });
  await primary.execute('object-add', {
    'qom-type': 'colo-compare',
    id: 'comp0',
    primary_in: 'compare0-0',
    secondary_in: 'compare1',
    outdev: 'compare_out0',
    iothread: 'compare-thread',
    vnet_hdr_support: true,
  });
  await filter(primary, 'filter-mirror', 'm0', { queue: 'tx', outdev: 'mirror0' });
  await filter(primary, 'filter-redirector', 'redire0', { queue: 'rx', indev: 'compare_out' });
  await filter(primary, 'filter-redirector', 'redire1', { queue: 'rx', outdev: 'compare0' });
}
