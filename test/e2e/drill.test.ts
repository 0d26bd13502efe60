/**
 * `drill`: a planned failover. The VM goes on at the standby's host and comes back, the client's stream has neither gap nor regression, and what stands in the
 * way is said, or leaves the VM where it was.
 */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { DrillReport } from '../../src/agent/drill-report.ts';
import { QmpClient } from '../../src/qmp/client.ts';
import { type AgentStatus, TestAgent } from '../../src/testbed/agents.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { StreamClient } from '../../src/testbed/client.ts';
import { checkDisks } from '../../src/testbed/disk-clients.ts';
import { TestEtcd } from '../../src/testbed/etcd.ts';
import { type HostName, TestHosts } from '../../src/testbed/hosts.ts';
import { TestNetwork } from '../../src/testbed/network.ts';
import type { TestVm } from '../../src/testbed/vm.ts';
import { colo } from './support/cli.ts';
import { waitSteps } from './support/disks.ts';
import {
  freePort,
  type GuestOptions,
  PROTECT_MS,
  protect,
  standbyOf,
  startVm,
  VM_NAME,
  waitBooted,
} from './support/protection.ts';
import { goesOn } from './support/stream.ts';

type ProtectingHost = Exclude<HostName, 'witness'>;

const PORT = 7700;
const TIMINGS = ['--peer-timeout', '1000', '--witness-timeout', '500'];

let cleanup: Cleanup;
let network: TestNetwork;
let guest: GuestOptions;

beforeEach(async () => {
  cleanup = new Cleanup();
  network = cleanup.own(await TestNetwork.create());
  guest = { guest: 'linux', network, append: 'colo.services=counter' };
});
afterEach(() => cleanup.run());

async function connect(): Promise<StreamClient> {
  const client = cleanup.own(await StreamClient.connect(network));
  await client.waitAfter(0, 60_000);
  return client;
}

async function drill(agent: TestAgent): Promise<DrillReport> {
  return (await agent.command('drill')) as DrillReport;
}

function waitRole(agent: TestAgent, wanted: 'primary' | 'secondary', state: string): Promise<AgentStatus> {
  return agent.waitStatus(
    `the ${wanted} that is ${state}`,
    PROTECT_MS,
    ({ role, state: now }) => role === wanted && now === state,
  );
}

async function runs(vm: TestVm): Promise<boolean> {
  const monitor = await QmpClient.connect(vm.testQmpPath);
  const { running } = await monitor.execute('query-status');
  monitor.close();
  return running;
}

/** What was left of a VM that stands: nothing of the agent's is on it. */
async function expectLeft(vm: TestVm): Promise<void> {
  const monitor = await QmpClient.connect(vm.testQmpPath);
  const [chardevs, jobs] = await monitor.executeAll([['query-chardev'], ['query-jobs']]);
  const objects = await monitor.execute('qom-list', { path: '/objects' });
  monitor.close();
  expect(chardevs.filter(({ label }) => label.startsWith('colo-'))).toEqual([]);
  expect(objects.filter(({ name }) => name.startsWith('colo-'))).toEqual([]);
  expect(jobs).toEqual([]);
  expect(await runs(vm)).toBe(false);
}

/** Each step is no earlier than the one before; the outage is what lies between the first and the last of them. */
function expectOrder({ times, outageMs }: DrillReport, claimed: boolean): void {
  const { lastCheckpoint, stopped, transferred, received, loaded, handedOver, disksSynced, runs: at } = times;
  const inOrder = [lastCheckpoint, stopped, transferred ?? received, loaded, handedOver, disksSynced, at];
  expect(inOrder).not.toContain(null);
  expect(inOrder).toEqual(inOrder.toSorted((a, b) => Number(a) - Number(b)));
  expect(outageMs).toBe(Number(at) - Number(stopped));
  if (claimed) expect(times.claimed).toBeGreaterThanOrEqual(Number(handedOver));
  else expect(times.claimed).toBeNull();
}

describe('with a witness', () => {
  let hosts: TestHosts;
  let etcd: TestEtcd;

  beforeEach(async () => {
    hosts = cleanup.own(await TestHosts.create());
    etcd = cleanup.own(await TestEtcd.start({ prefix: hosts.prefix('witness') }));
  });

  /** Each host can be either. */
  async function start(host: ProtectingHost, role: 'primary' | 'secondary', vm: TestVm): Promise<TestAgent> {
    const witness = etcd.endpointsAt(hosts.address('witness', host)).join(',');
    const other = host === 'north' ? 'south' : 'north';
    const args = ['--vm', VM_NAME, '--qmp', vm.qmpPath, '--node', host, '--witness', witness, ...TIMINGS];
    args.push('--peer', `${hosts.address(other, host)}:${PORT}`, '--log-level', 'debug');
    args.push('--listen', `${hosts.address(host, other)}:${PORT}`);
    return cleanup.own(await TestAgent.start(role, args, {}, hosts.prefix(host)));
  }

  async function protectBoth() {
    const northVm = await startVm(cleanup, 'north', guest, false);
    await waitBooted(northVm, guest);
    const southVm = await startVm(cleanup, 'south', standbyOf(guest), true);
    const south = await start('south', 'secondary', southVm);
    const north = await start('north', 'primary', northVm);
    return { northVm, southVm, north, south };
  }

  test('there and back: the same two QEMUs, the same two agents', { timeout: 400_000 }, async () => {
    guest = { ...guest, disks: [{ id: 'd0', sizeMiB: 32 }], append: 'colo.services=counter,diskcheck' };
    const { northVm, southVm, north, south } = await protectBoth();
    await expect(drill(south)).rejects.toThrow(/this is a standby: run drill on its primary/);
    await waitRole(north, 'primary', 'PROTECTED');
    const client = await connect();

    const there = await drill(north);
    expect(there).toMatchObject({ vm: VM_NAME, node: 'south', generation: 3 });
    expectOrder(there, true);
    expect(await waitRole(south, 'primary', 'PROTECTED')).toMatchObject({ qemuPid: southVm.pid });
    expect(await waitRole(north, 'secondary', 'STANDBY')).toMatchObject({ qemuPid: northVm.pid });
    expect(await runs(northVm)).toBe(false);
    await goesOn(client);
    await waitSteps(southVm, 5);

    const shown = await colo('events', '--failover', 'last', '--control', south.controlPath);
    expect(shown.stdout).toMatch(/: e2e took over at checkpoint \d+, in generation 3\n/);
    expect(shown.stdout).toMatch(/decided {2}the primary, which handed it over\n/);
    for (const step of [
      'the primary hands the VM over',
      'ask the witness',
      'record generation',
      'cont',
      'the guest runs here',
    ])
      expect(shown.stdout).toContain(`  ${step} `);

    const text = await colo('drill', '--control', south.controlPath);
    expect(text.stderr).toBe('');
    expect(text.stdout).toMatch(/ms {2}the guest's outage\ne2e runs on north, in generation 4/);
    await waitRole(north, 'primary', 'PROTECTED');
    await waitRole(south, 'secondary', 'STANDBY');
    expect(await runs(southVm)).toBe(false);
    await goesOn(client);
    await waitSteps(northVm, 5);
    await checkDisks(network, 60_000);
  });

  test('a standby that dies in the middle: the primary wins, and its guest goes on', async () => {
    const { northVm, southVm, north, south } = await protectBoth();
    await waitRole(north, 'primary', 'PROTECTED');
    const client = await connect();
    // Without the witness's answer the standby has neither won nor lost.
    etcd.kill(0);
    const failure = drill(north).then(
      () => 'done',
      (error: Error) => error.message,
    );
    await south.waitState('BLOCKED', 60_000);
    expect(await runs(northVm)).toBe(false);
    south.kill();
    southVm.kill();
    expect(await failure).toMatch(/the VM stands here until the witness answers/);
    expect(await runs(northVm)).toBe(false);
    await etcd.restart(0);
    await waitRole(north, 'primary', 'EXPOSED');
    await goesOn(client);
    expect(await runs(northVm)).toBe(true);
    await expect(drill(north)).rejects.toThrow(/only a PROTECTED VM can be handed over; this one is EXPOSED/);
  });
});

describe('without a witness', () => {
  test('who has handed over ends, and leaves its VM standing; nobody is fenced', async () => {
    const { primaryVm, standbyVm, primary, secondary } = await protect(cleanup, {
      guest,
      primaryArgs: ['--witness', 'none'],
      secondaryArgs: ['--witness', 'none', '--fence-command', '/bin/false'],
    });
    const client = await connect();
    const report = await drill(primary);
    expect(report).toMatchObject({ generation: 2 });
    expectOrder(report, false);
    expect((await primary.exited).code).toBe(0);
    expect(primary.log()).toContain('runs the VM in generation 2');
    await secondary.waitState('RUNNING', 60_000);
    await expectLeft(primaryVm);
    expect(await runs(standbyVm)).toBe(true);
    await goesOn(client);
  });

  test('a person decides, and the VM comes back', { timeout: 300_000 }, async () => {
    const [north, south] = [`127.0.0.1:${await freePort()}`, `127.0.0.1:${await freePort()}`];
    const { primary, secondary } = await protect(cleanup, {
      guest,
      primaryArgs: ['--witness', 'manual', '--listen', north],
      secondaryArgs: ['--witness', 'manual', '--listen', south, '--peer', north],
      via: async () => south,
    });
    const client = await connect();
    await drill(primary);
    await waitRole(secondary, 'primary', 'PROTECTED');
    await waitRole(primary, 'secondary', 'STANDBY');
    await goesOn(client);
    await drill(secondary);
    await waitRole(primary, 'primary', 'PROTECTED');
    await waitRole(secondary, 'secondary', 'STANDBY');
    await goesOn(client);
  });
});
