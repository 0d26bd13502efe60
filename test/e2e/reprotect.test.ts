/**
 * `secondary --peer`: who has taken a VM over goes on as its primary, in the same process and behind the same control socket, and protects it again as soon as a
 * standby is there; first one host dies, then the other, and the client's stream has neither gap nor regression.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
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
import { makeFolder, waitSteps } from './support/disks.ts';
import {
  freePort,
  type GuestOptions,
  PROTECT_MS,
  protect,
  standbyOf,
  startPrimary,
  startVm,
  VM_NAME,
  waitBooted,
} from './support/protection.ts';
import { goesOn } from './support/stream.ts';

type ProtectingHost = Exclude<HostName, 'witness'>;

const PORT = 7700;
const TIMINGS = ['--peer-timeout', '1000', '--witness-timeout', '500'];
const ASK_MS = 10;

let cleanup: Cleanup;
let network: TestNetwork;
let guest: GuestOptions;

beforeEach(async () => {
  cleanup = new Cleanup();
  network = cleanup.own(await TestNetwork.create());
  guest = { guest: 'linux', network, append: 'colo.services=counter' };
});
afterEach(() => cleanup.run());

/** As the primary of a VM that nobody stands by for. */
function waitAlone(agent: TestAgent): Promise<AgentStatus> {
  const alone = ({ role, state }: AgentStatus) => role === 'primary' && state === 'EXPOSED';
  return agent.waitStatus('the survivor as a primary', 60_000, alone);
}

/** Asks for the status all the time; who the agent said it is, and every question without an answer. */
class Asking {
  readonly roles: unknown[] = [];
  readonly failures: string[] = [];
  #ended = false;
  readonly #asking: Promise<void>;

  constructor(agent: TestAgent) {
    this.#asking = this.#ask(agent);
  }

  async end(): Promise<void> {
    this.#ended = true;
    await this.#asking;
  }

  async #ask(agent: TestAgent): Promise<void> {
    while (!this.#ended) {
      try {
        const { role } = await agent.status();
        if (role !== this.roles.at(-1)) this.roles.push(role);
      } catch (error) {
        this.failures.push((error as Error).message);
      }
      await sleep(ASK_MS);
    }
  }
}

/** Of a VM whose agent looks for a standby: nothing of the standby that it was is left on it, and the gate comes with the next session. */
async function expectBare(vm: TestVm): Promise<void> {
  const monitor = await QmpClient.connect(vm.testQmpPath);
  const [chardevs, nodes, status] = await monitor.executeAll([
    ['query-chardev'],
    ['query-named-block-nodes', { flat: true }],
    ['query-status'],
  ]);
  const objects = await monitor.execute('qom-list', { path: '/objects' });
  monitor.close();
  expect(chardevs.filter(({ label }) => label.startsWith('colo-'))).toEqual([]);
  expect(objects.filter(({ name }) => name.startsWith('colo-'))).toEqual([]);
  expect(nodes.filter(({ 'node-name': node }) => node?.startsWith('colo-'))).toEqual([]);
  expect(status.running).toBe(true);
}

describe('with a witness', () => {
  let hosts: TestHosts;
  let etcd: TestEtcd;

  beforeEach(async () => {
    hosts = cleanup.own(await TestHosts.create());
    etcd = cleanup.own(await TestEtcd.start({ prefix: hosts.prefix('witness') }));
  });

  async function start(host: ProtectingHost, role: 'primary' | 'secondary', vm: TestVm): Promise<TestAgent> {
    const witness = etcd.endpointsAt(hosts.address('witness', host)).join(',');
    const other = host === 'north' ? 'south' : 'north';
    const args = ['--vm', VM_NAME, '--qmp', vm.qmpPath, '--node', host, '--witness', witness, ...TIMINGS];
    args.push('--peer', `${hosts.address(other, host)}:${PORT}`, '--log-level', 'debug');
    if (role === 'secondary') args.push('--listen', `${hosts.address(host, other)}:${PORT}`);
    return cleanup.own(await TestAgent.start(role, args, {}, hosts.prefix(host)));
  }

  test('there and back: each survivor is protected again by itself', { timeout: 400_000 }, async () => {
    guest = { ...guest, disks: [{ id: 'd0', sizeMiB: 32 }], append: 'colo.services=counter,diskcheck' };
    const folders = { north: makeFolder(cleanup), south: makeFolder(cleanup) };
    const standbyOn = async (host: ProtectingHost, name: string) => {
      const vm = await startVm(cleanup, name, standbyOf(guest, folders[host]), true);
      return { vm, agent: await start(host, 'secondary', vm) };
    };
    const firstVm = await startVm(cleanup, 'first', guest, false);
    await waitBooted(firstVm, guest);
    const south = await standbyOn('south', 'south');
    const first = await start('north', 'primary', firstVm);
    await first.waitState('PROTECTED', PROTECT_MS);
    const client = cleanup.own(await StreamClient.connect(network));
    await client.waitAfter(0, 60_000);

    const asking = new Asking(south.agent);
    first.kill();
    firstVm.kill();
    expect(await waitAlone(south.agent)).toMatchObject({
      generation: 3,
      qemuPid: south.vm.pid,
    });
    await goesOn(client);
    await expectBare(south.vm);

    const north = await standbyOn('north', 'north-again');
    // The generation of the take-over: it has not been claimed again, nor lost to anybody.
    expect(await south.agent.waitState('PROTECTED', PROTECT_MS)).toMatchObject({
      role: 'primary',
      generation: 3,
    });
    await asking.end();
    expect(asking).toMatchObject({ roles: ['secondary', 'primary'], failures: [] });
    await goesOn(client);
    await waitSteps(south.vm, 10);

    south.agent.kill();
    south.vm.kill();
    expect(await waitAlone(north.agent)).toMatchObject({ generation: 4 });
    await goesOn(client);

    // With the disk that the VM ran on in generation 3: the older one.
    const southAgain = await standbyOn('south', 'south-again');
    expect(await north.agent.waitState('PROTECTED', PROTECT_MS)).toMatchObject({ generation: 4 });
    await southAgain.agent.waitState('STANDBY', PROTECT_MS);
    await goesOn(client);
    await waitSteps(north.vm, 10);
    await checkDisks(network, 60_000);

    await north.agent.command('stop');
    expect((await north.agent.exited).code).toBe(0);
    await expectBare(north.vm);
    await goesOn(client);
  });

  test('what a person has ordered is written down when the witness is back, and the VM is protected again', async () => {
    const firstVm = await startVm(cleanup, 'first', guest, false);
    await waitBooted(firstVm, guest);
    const standbyVm = await startVm(cleanup, 'standby', guest, true);
    const secondary = await start('south', 'secondary', standbyVm);
    const primary = await start('north', 'primary', firstVm);
    await primary.waitState('PROTECTED', PROTECT_MS);
    const client = cleanup.own(await StreamClient.connect(network));
    await client.waitAfter(0, 60_000);

    etcd.kill(0);
    primary.kill();
    firstVm.kill();
    await secondary.waitState('BLOCKED', 60_000);
    expect(await secondary.command('failover', VM_NAME)).toMatch(/the witness does not know of it/);
    await goesOn(client);
    await secondary.waitStatus('its primary', 60_000, ({ role }) => role === 'primary');
    await etcd.restart(0);
    await start('north', 'secondary', await startVm(cleanup, 'north-again', guest, true));
    await secondary.waitState('PROTECTED', PROTECT_MS);
    await goesOn(client);
  });
});

describe('without a witness', () => {
  test('an older primary that comes back is fenced by a survivor that is a primary itself', async () => {
    const nobody = `127.0.0.1:${await freePort()}`;
    const { primaryVm, primary, secondary, listen } = await protect(cleanup, {
      guest,
      secondaryArgs: ['--witness', 'none', '--peer', nobody],
    });
    const client = cleanup.own(await StreamClient.connect(network));
    await client.waitAfter(0, 60_000);
    primary.kill();
    expect(await waitAlone(secondary)).toMatchObject({ generation: 2, peer: nobody });
    const next = await startPrimary(cleanup, primaryVm, listen);
    expect((await next.exited).code).toBe(75);
    expect(next.log()).toContain('FENCED');
    await primaryVm.exited;
    await goesOn(client);
    await expect(secondary.command('failover')).rejects.toThrow(/run failover on its standby/);
  });
});

test('a VM that could not be protected after a take-over is no standby of one that is to be', async () => {
  const vm = await startVm(cleanup, 'standby', { guest: 'baremetal' }, true);
  const standby = ['secondary', '--vm', 'a', '--qmp', vm.qmpPath, '--listen', '127.0.0.1:0', '--insecure'];
  const refused = await colo(...standby, '--peer', '127.0.0.1:1', '--ungated-disk', 'vdz');
  expect(refused.stderr).toMatch(/disk vdz: the VM has none of this name/);
  expect(refused.code).toBe(78);
});
