/**
 * A VM under a real Pacemaker: two nodes with corosync, two daemons, two QEMUs, an etcd. The tests follow each other on one cluster: what one leaves is what the
 * next begins with.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { TestEtcd } from '../../src/testbed/etcd.ts';
import { TestHosts } from '../../src/testbed/hosts.ts';
import type { TestVm } from '../../src/testbed/vm.ts';
import { waitFor } from '../../src/testbed/wait.ts';
import { TestDaemon } from '../e2e/support/daemon.ts';
import { launcherIn } from '../e2e/support/ocf.ts';
import { type GuestOptions, startVm, waitBooted } from '../e2e/support/protection.ts';
import { runsNow, waitRuns } from '../e2e/support/run-state.ts';
import { Cluster, NODES, type NodeName, type Role } from './cluster.ts';
import { CLONE, createResource, RESOURCE } from './resource.ts';

const GUEST: GuestOptions = { guest: 'baremetal' };
const PORT = 7700;
const AGREE_MS = 180_000;

let cleanup: Cleanup;
let hosts: TestHosts;
let etcd: TestEtcd;
let cluster: Cluster;
const vms = {} as Record<NodeName, TestVm>;
const daemons = {} as Record<NodeName, TestDaemon>;

beforeAll(async () => {
  cleanup = new Cleanup();
  hosts = cleanup.own(await TestHosts.create());
  etcd = cleanup.own(await TestEtcd.start({ prefix: hosts.prefix('witness') }));
  vms.north = await startVm(cleanup, 'north', GUEST, false);
  vms.south = await startVm(cleanup, 'south', GUEST, true);
  await waitBooted(vms.north, GUEST);
  daemons.north = cleanup.own(new TestDaemon('primary', { prefix: hosts.prefix('north') }));
  daemons.south = cleanup.own(new TestDaemon('secondary', { prefix: hosts.prefix('south') }));
  for (const name of NODES) {
    configure(name);
    await daemons[name].start();
  }
  await daemons.north.waitState(RESOURCE, 'PROTECTED');
  const controls = { north: daemons.north.controlPath, south: daemons.south.controlPath };
  cluster = cleanup.own(await Cluster.start(hosts, controls));
  const folder = mkdtempSync(path.join(tmpdir(), 'colo-pacemaker-'));
  cleanup.own({ destroy: () => rmSync(folder, { recursive: true }) });
  await createResource(cluster.node('north'), { vm: RESOURCE, binary: launcherIn(folder) });
});
afterAll(() => cleanup.run());

/** The daemon of a host is told of its VM. */
function configure(name: NodeName): void {
  const other = otherThan(name);
  daemons[name].writeVm(RESOURCE, [
    `qmp = "${vms[name].qmpPath}"`,
    `node = "${name}"`,
    `listen = "${hosts.address(name, other)}:${PORT}"`,
    `peer = "${hosts.address(other, name)}:${PORT}"`,
    `witness = "${etcd.endpointsAt(hosts.address('witness', name)).join(',')}"`,
    'peer-timeout = 1000',
    'witness-timeout = 500',
  ]);
}

function otherThan(name: NodeName): NodeName {
  return name === 'north' ? 'south' : 'north';
}

async function generationOf(name: NodeName): Promise<number> {
  return Number((await daemons[name].vm(RESOURCE)).generation);
}

/** Waits until Pacemaker, asked on `on`, believes that. */
async function waitView(wanted: Record<NodeName, Role>, on: NodeName = 'north'): Promise<void> {
  let seen: unknown;
  await waitFor(
    `view of Pacemaker on ${on} that is ${JSON.stringify(wanted)}`,
    AGREE_MS,
    async () => {
      seen = await cluster.node(on).view(RESOURCE);
      return JSON.stringify(seen) === JSON.stringify(wanted);
    },
    () => `; it is ${JSON.stringify(seen)}\n${cluster.node(on).logTail()}`,
  );
}

/** Pacemaker and both daemons agree on where it runs, and it runs nowhere else. */
async function expectRuns(name: NodeName): Promise<void> {
  const other = otherThan(name);
  await waitView({ north: 'Unpromoted', south: 'Unpromoted', [name]: 'Promoted' });
  await daemons[name].waitState(RESOURCE, 'PROTECTED');
  expect((await daemons[other].vm(RESOURCE)).role).toBe('secondary');
  await waitRuns(vms[name]);
  expect(await runsNow(vms[other])).toBe(false);
}

/** It may not be promoted there any more. */
async function ban(name: NodeName): Promise<void> {
  const what = ['--resource', CLONE, '--promoted', '--node', name];
  await cluster.node('north').run('crm_resource', '--ban', ...what);
}

async function setStandby(name: NodeName, value: 'on' | 'off'): Promise<void> {
  const what = ['--node', name, '--name', 'standby', '--update', value];
  await cluster.node('north').run('crm_attribute', ...what);
}

/** Until the standby of `name` may be promoted, by Pacemaker's own book. */
async function waitPromotable(name: NodeName): Promise<void> {
  await waitFor('promotion score of the standby', AGREE_MS, async () => {
    const score = await cluster
      .node(name)
      .run('crm_attribute', '--promotion', RESOURCE, '--query', '--quiet')
      .catch(() => '');
    return score.trim() === '100';
  });
}

test('what runs already is found as it is, and nothing is moved', async () => {
  const generation = await generationOf('north');
  await expectRuns('north');
  expect(await generationOf('north')).toBe(generation);
});

test('a node where it may not run any more: it is handed over to the other', async () => {
  await waitPromotable('south');
  await ban('north');
  await expectRuns('south');
  await cluster.node('north').run('crm_resource', '--clear', '--resource', CLONE);
  await expectRuns('south');
});

test('a node on standby: handed over, and its standby ends', async () => {
  await waitPromotable('north');
  await setStandby('south', 'on');
  await waitView({ north: 'Promoted', south: 'Stopped' });
  expect((await daemons.south.vm(RESOURCE)).state).toBe('STOPPED');
  await waitRuns(vms.north);
  expect(await runsNow(vms.south)).toBe(false);
});

test('then it may not run on the other either: it isn’t taken away from there, and is protected again when there is a standby', async () => {
  await ban('north');
  await waitFor('refused demotion', AGREE_MS, () => cluster.node('north').isBlocked(RESOURCE));
  await waitRuns(vms.north);
  expect((await daemons.north.vm(RESOURCE)).state).toBe('EXPOSED');
  await cluster.node('north').run('crm_resource', '--clear', '--resource', CLONE);
  await cluster.node('north').run('crm_resource', '--cleanup', '--resource', RESOURCE);
  await setStandby('south', 'off');
  await expectRuns('north');
});

test('a standby whose primary lives is not promoted by force, and the VM stays where it is', async () => {
  await waitPromotable('south');
  const generation = await generationOf('north');
  // As Pacemaker would promote it, by the agent on the node: only the generation stands in the way.
  const forced = await cluster
    .node('south')
    .run('crm_resource', '--force-promote', '--resource', RESOURCE, '--timeout', '10s')
    .then(
      (text) => text,
      (error: Error & { stdout?: string }) => `failed: ${error.message}\n${error.stdout}`,
    );
  expect(forced).toMatch(/^failed: [\s\S]*failover refused: the primary is connected/);
  await expectRuns('north');
  expect(await generationOf('north')).toBe(generation);
});

test('a daemon that hangs: the VM stays where it is, protected, and Pacemaker finds it there again', async () => {
  const generation = await generationOf('north');
  daemons.north.signal('SIGSTOP');
  try {
    await waitFor('failed monitor', AGREE_MS, async () => {
      const counts = await cluster.node('north').run('crm_failcount', '--query', '--resource', RESOURCE);
      return !/value=0/.test(counts);
    });
  } finally {
    daemons.north.signal('SIGCONT');
  }
  await expectRuns('north');
  expect(await generationOf('north')).toBe(generation);
  expect(await cluster.node('north').isBlocked(RESOURCE)).toBe(false);
});

test('a drill by a person: Pacemaker follows', async () => {
  await waitPromotable('south');
  await daemons.north.drill(RESOURCE);
  await expectRuns('south');
});

test('a QEMU that dies: the standby has taken over, Pacemaker promotes it; a new QEMU stands by again', async () => {
  await waitPromotable('north');
  vms.south.kill();
  await vms.south.exited;
  await waitView({ north: 'Promoted', south: 'Stopped' });
  await waitRuns(vms.north);
  vms.south = await startVm(cleanup, 'south-again', GUEST, true);
  configure('south');
  await expectRuns('north');
});

test('a host that dies: the standby takes over, and Pacemaker agrees', async () => {
  await waitPromotable('south');
  await hosts.cut('north-south', 'north-witness');
  await cluster.node('north').kill();
  await daemons.north.end('SIGKILL');
  vms.north.kill();
  await waitView({ north: 'Stopped', south: 'Promoted' }, 'south');
  await waitRuns(vms.south);
  expect((await daemons.south.vm(RESOURCE)).role).toBe('primary');
});
