/**
 * Two hosts, a witness that is a real etcd, and a link between each two of them that can be cut: whatever is cut or killed, exactly one VM goes on with an open
 * gate, the client's stream has neither gap nor regression, and who has lost is fenced.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { TakeOverRecord } from '../../src/agent/take-over-record.ts';
import { type AgentStatus, TestAgent } from '../../src/testbed/agents.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { StreamClient } from '../../src/testbed/client.ts';
import { TestEtcd } from '../../src/testbed/etcd.ts';
import { type HostName, TestHosts } from '../../src/testbed/hosts.ts';
import { TestNetwork } from '../../src/testbed/network.ts';
import type { TestVm } from '../../src/testbed/vm.ts';
import { execute } from './support/disks.ts';
import { type GuestOptions, PROTECT_MS, startVm, VM_NAME, waitBooted } from './support/protection.ts';
import { goesOn } from './support/stream.ts';

const PORT = 7700;
const TIMINGS = ['--peer-timeout', '1000', '--witness-timeout', '500'];

let cleanup: Cleanup;
let hosts: TestHosts;
let etcd: TestEtcd;
let guest: GuestOptions;
let network: TestNetwork;

beforeEach(async () => {
  cleanup = new Cleanup();
  hosts = cleanup.own(await TestHosts.create());
  etcd = cleanup.own(await TestEtcd.start({ prefix: hosts.prefix('witness') }));
  network = cleanup.own(await TestNetwork.create());
  guest = { guest: 'linux', network, append: 'colo.services=counter' };
});
afterEach(() => cleanup.run());

/** An agent on its host; `state` is what the host remembers. */
async function start(
  host: 'north' | 'south',
  role: 'primary' | 'secondary',
  vm: TestVm,
  more: string[] = [],
): Promise<TestAgent> {
  const witness = etcd.endpointsAt(hosts.address('witness', host)).join(',');
  const own = ['--vm', VM_NAME, '--qmp', vm.qmpPath, '--node', host, '--witness', witness, ...TIMINGS];
  const other: HostName = host === 'north' ? 'south' : 'north';
  const peer =
    role === 'primary'
      ? ['--peer', `${hosts.address(other, host)}:${PORT}`]
      : ['--listen', `${hosts.address(host, other)}:${PORT}`];
  const args = [...own, ...peer, ...more, '--log-level', 'debug'];
  return cleanup.own(await TestAgent.start(role, args, {}, hosts.prefix(host)));
}

interface Pair {
  primaryVm: TestVm;
  standbyVm: TestVm;
  primary: TestAgent;
  secondary: TestAgent;
  client: StreamClient;
}

/** `primaryArgs`: more of them. */
async function protect(primaryArgs: string[] = []): Promise<Pair> {
  const primaryVm = await startVm(cleanup, 'primary', guest, false);
  await waitBooted(primaryVm, guest);
  const standbyVm = await startVm(cleanup, 'standby', guest, true);
  const secondary = await start('south', 'secondary', standbyVm);
  const primary = await start('north', 'primary', primaryVm, primaryArgs);
  await primary.waitState('PROTECTED', PROTECT_MS);
  const client = cleanup.own(await StreamClient.connect(network));
  await client.waitAfter(0, 60_000);
  return { primaryVm, standbyVm, primary, secondary, client };
}

/** Either the primary went on alone, or the standby took over and the primary's VM is gone. */
async function waitForOneRunner({ primary, primaryVm, secondary }: Pair): Promise<'north' | 'south'> {
  const fenced = primary.exited.then(() => 'south' as const);
  const exposed = primary
    .waitStatus(
      'the primary alone',
      60_000,
      ({ state, reason }) => state === 'EXPOSED' && !/asking/.test(reason),
    )
    .then(() => 'north' as const)
    .catch(() => fenced);
  const winner = await Promise.race([fenced, exposed]);
  if (winner === 'south') {
    expect((await primary.exited).code).toBe(75);
    expect(primary.log()).toContain('FENCED');
    await primaryVm.exited;
    await secondary.waitState('RUNNING', 60_000);
  } else {
    await secondary.waitStatus('a loser', 60_000, ({ state }) => state === 'STARTING');
  }
  return winner;
}

describe('the link between the hosts is cut, and both live', () => {
  test('exactly one goes on; the other knows that it has lost', async () => {
    const pair = await protect();
    await hosts.cut('north-south');
    const winner = await waitForOneRunner(pair);
    await goesOn(pair.client);
    if (winner === 'south') return;
    // The loser's checkpoint is stale; it becomes a standby again with the link.
    await hosts.mend('north-south');
    await pair.primary.waitState('PROTECTED', PROTECT_MS);
    await goesOn(pair.client);
  });

  test('the primary cut off from everything: the standby takes over, and the primary is fenced when it hears of it', async () => {
    const pair = await protect();
    await hosts.cut('north-south', 'north-witness');
    await pair.secondary.waitState('RUNNING', 60_000);
    await pair.primary.waitState('BLOCKED', 60_000);
    await goesOn(pair.client);
    expect(pair.primaryVm.running).toBe(true);
    await hosts.mend('north-witness');
    expect(await waitForOneRunner(pair)).toBe('south');
    await goesOn(pair.client);
  });

  test('the standby cut off from everything: the primary goes on, and protects again when the links are back', async () => {
    const pair = await protect();
    await hosts.cut('north-south', 'south-witness');
    expect(await pair.secondary.waitState('BLOCKED', 60_000)).toMatchObject({
      reason: expect.stringContaining('before the witness answers'),
      witness: { kind: 'etcd', node: 'south', answers: false },
    });
    await goesOn(pair.client);
    await hosts.mend('north-south', 'south-witness');
    await pair.primary.waitState('PROTECTED', PROTECT_MS);
    await goesOn(pair.client);
  });

  test('nobody reaches the witness: both wait behind the closed gate, and when it is back exactly one goes on', async () => {
    const pair = await protect();
    await hosts.cut('north-south', 'north-witness', 'south-witness');
    await pair.primary.waitState('BLOCKED', 60_000);
    await pair.secondary.waitState('BLOCKED', 60_000);
    const before = pair.client.check.received;
    await sleep(1000); // nothing is to be seen, for as long as one looks
    expect(pair.client.check.received).toBe(before);
    await hosts.mend('north-witness', 'south-witness');
    await waitForOneRunner(pair);
    await goesOn(pair.client);
  });

  test('the witness alone out of reach: nothing happens', async () => {
    const pair = await protect();
    await hosts.cut('north-witness', 'south-witness');
    // Each asks by itself, every two seconds.
    for (const agent of [pair.primary, pair.secondary])
      await agent.waitStatus(
        'silence of the witness',
        30_000,
        ({ witness }) => (witness as { answers: boolean }).answers === false,
      );
    await goesOn(pair.client);
    const ifPrimaryDies = expect.stringContaining("for the witness, which doesn't answer here");
    expect(await pair.primary.status()).toMatchObject({ state: 'PROTECTED', ifPrimaryDies });
    expect(await pair.secondary.status()).toMatchObject({ state: 'STANDBY', ifPrimaryDies });
  });
});

test('the standby asks another record than its primary: no session, and both say why', async () => {
  const primaryVm = await startVm(cleanup, 'primary', guest, false);
  await waitBooted(primaryVm, guest);
  const standbyVm = await startVm(cleanup, 'standby', guest, true);
  const secondary = await start('south', 'secondary', standbyVm, ['--witness-prefix', '/elsewhere']);
  const primary = await start('north', 'primary', primaryVm);
  const why = /the standby's witness has no record of this VM, and north says .*--witness-prefix/;
  await primary.waitStatus(
    'the reason',
    60_000,
    ({ state, reason }) => state === 'EXPOSED' && why.test(reason),
  );
  await secondary.waitStatus(
    'the reason',
    60_000,
    ({ state, reason }) => state === 'STARTING' && why.test(reason),
  );
});

describe('deaths', () => {
  test('kill -9 of the primary, agent and QEMU: the standby claims and takes over', async () => {
    const pair = await protect();
    pair.primary.kill();
    pair.primaryVm.kill();
    const { generation } = await pair.secondary.waitState('RUNNING', 60_000);
    expect(generation).toBe(3);
    await goesOn(pair.client);
    const [record] = (await pair.secondary.command('take-overs')) as TakeOverRecord[];
    expect(record).toMatchObject({ outcome: 'took-over', decidedBy: 'witness', generation: 3 });
    // What lies before depends on what the primary was doing.
    const steps = record?.steps.map(({ what }) => what) ?? [];
    expect(steps.slice(steps.indexOf('settle disks'))).toEqual([
      'settle disks',
      'sync disks',
      'ask the witness',
      'let it run',
      'record generation',
      'record disks',
      'cont',
      'the guest runs here',
    ]);

    // Its host comes back with a VM that was never protected there: it is refused, and left as it is.
    const returned = await startVm(cleanup, 'returned', guest, false);
    await waitBooted(returned, guest);
    const agent = await start('north', 'primary', returned).catch((error: Error) => error);
    if (agent instanceof TestAgent) {
      expect((await agent.exited).code).toBe(78);
      expect(agent.log()).toMatch(/it runs on south in generation 3/);
    } else {
      expect(agent.message).toMatch(/it runs on south in generation 3/);
    }
    expect(returned.running).toBe(true);
    returned.kill();

    // The survivor is protected again, the other way round.
    await pair.secondary.command('stop');
    expect((await pair.secondary.exited).code).toBe(0);
    const nextStandby = await startVm(cleanup, 'next-standby', guest, true);
    await start('north', 'secondary', nextStandby);
    const nextPrimary = await start('south', 'primary', pair.standbyVm);
    expect(await nextPrimary.waitState('PROTECTED', PROTECT_MS)).toMatchObject({ generation: 4 });
    await goesOn(pair.client);
  });

  test('the host of a primary comes back and starts its VM by itself: the older twin is stopped, not ended', async () => {
    const state = mkdtempSync(path.join(tmpdir(), 'colo-state-'));
    cleanup.add(() => rmSync(state, { recursive: true }));
    const pair = await protect(['--state-dir', state]);
    pair.primary.kill();
    pair.primaryVm.kill();
    await pair.secondary.waitState('RUNNING', 60_000);
    const twin = await startVm(cleanup, 'twin', guest, false);
    await waitBooted(twin, guest);
    const agent = await start('north', 'primary', twin, ['--state-dir', state]).catch(
      (error: Error) => error,
    );
    if (agent instanceof TestAgent) expect((await agent.exited).code).toBe(78);
    const said = agent instanceof TestAgent ? agent.log() : agent.message;
    expect(said).toMatch(/FENCED.*it runs on south in generation 3/);
    expect(said).toMatch(/older twin of it: it has been stopped/);
    expect(twin.running).toBe(true);
    expect(await execute(twin, 'query-status')).toMatchObject({ running: false });
    twin.kill();
    await goesOn(pair.client);
  });

  test("kill -9 of the primary's agent, restarted in time: it claims, opens the gate and protects again", async () => {
    const pair = await protect();
    // The standby can't ask, so the agent that comes back is the first.
    await hosts.cut('south-witness');
    pair.primary.kill();
    await pair.primary.exited;
    const next = await start('north', 'primary', pair.primaryVm);
    await next.waitStatus('an open gate', 60_000, ({ state }) => state !== 'BLOCKED' && state !== 'STARTING');
    await goesOn(pair.client);
    await hosts.mend('south-witness');
    await next.waitState('PROTECTED', PROTECT_MS);
    await goesOn(pair.client);
  });

  test("kill -9 of the primary's agent, restarted too late: fenced, its VM destroyed", async () => {
    const pair = await protect();
    pair.primary.kill();
    await pair.primary.exited;
    await pair.secondary.waitState('RUNNING', 60_000);
    const next = await start('north', 'primary', pair.primaryVm).catch((error: Error) => error);
    if (next instanceof TestAgent) expect((await next.exited).code).toBe(75);
    else expect(next.message).toContain('FENCED');
    await pair.primaryVm.exited;
    await goesOn(pair.client);
  });

  test('kill -9 of the standby: the primary goes on alone in a new generation, and protects again', async () => {
    const pair = await protect();
    pair.secondary.kill();
    pair.standbyVm.kill();
    await pair.primary.waitStatus('the primary alone', 60_000, ({ state }) => state === 'EXPOSED');
    await goesOn(pair.client);
    const standbyVm = await startVm(cleanup, 'standby-2', guest, true);
    await start('south', 'secondary', standbyVm);
    await pair.primary.waitState('PROTECTED', PROTECT_MS);
    await goesOn(pair.client);
  });
});

describe('a person', () => {
  test('`stop` with the witness out of reach waits for it; by force it does not', async () => {
    const pair = await protect();
    await hosts.cut('north-witness');
    await pair.primary.command('stop');
    await pair.primary.waitState('BLOCKED', 60_000);
    await expect(pair.primary.command('stop', 'other')).rejects.toThrow(/this agent's is e2e/);
    expect(await pair.primary.command('stop', VM_NAME)).toMatch(
      /^protection has ended; .*by force; the witness does not know of it: /,
    );
    expect((await pair.primary.exited).code).toBe(0);
    await goesOn(pair.client);
  });

  test('forced beside a primary that runs alone: one of the two is left as soon as the witness hears of it', async () => {
    const pair = await protect();
    await hosts.cut('north-south', 'south-witness');
    const alone = ({ state, reason }: AgentStatus) => state === 'EXPOSED' && !/asking/.test(reason);
    await pair.primary.waitStatus('the primary alone', 60_000, alone);
    await pair.secondary.waitState('BLOCKED', 60_000);
    expect(await pair.secondary.command('failover', VM_NAME)).toMatch(/the witness does not know of it/);
    expect(pair.primaryVm.running).toBe(true);
    await hosts.mend('south-witness');
    expect((await pair.primary.exited).code).toBe(75);
    expect(pair.primary.log()).toMatch(/FENCED.*it runs on south/);
    await pair.primaryVm.exited;
    await pair.secondary.waitStatus('the record', 60_000, ({ reason }) => reason === 'took over');
    expect(pair.standbyVm.running).toBe(true);
  });

  test('`failover --force` without the witness', async () => {
    const pair = await protect();
    await hosts.cut('south-witness');
    pair.primary.kill();
    pair.primaryVm.kill();
    await pair.secondary.waitState('BLOCKED', 60_000);
    await expect(pair.secondary.command('failover')).rejects.toThrow(/before the witness answers/);
    expect(await pair.secondary.command('failover', VM_NAME)).toMatch(
      /^took over, by force; the witness does not know of it, and will be told: /,
    );
    await goesOn(pair.client);
    // And it is, when it can be reached again.
    await hosts.mend('south-witness');
    await pair.secondary.waitStatus('the record', 60_000, ({ reason }) => reason === 'took over');
    await goesOn(pair.client);
  });
});
