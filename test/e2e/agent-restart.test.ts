/** The primary's agent dies alone: the gate is closed until it is known who runs (invariants 1, 4, 7). */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { QmpClient } from '../../src/qmp/client.ts';
import type { TestAgent } from '../../src/testbed/agents.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { StreamClient } from '../../src/testbed/client.ts';
import { TestNetwork } from '../../src/testbed/network.ts';
import { monotonicMs } from '../../src/testbed/wait.ts';
import { type GuestOptions, PROTECT_MS, protect, startPrimary } from './support/protection.ts';

let cleanup: Cleanup;
let network: TestNetwork;
let guest: GuestOptions;
let client: StreamClient;

beforeEach(async () => {
  cleanup = new Cleanup();
  network = cleanup.own(await TestNetwork.create());
  guest = { guest: 'linux', network, append: 'colo.services=counter' };
});
afterEach(() => cleanup.run());

describe('the agent of the primary dies alone', () => {
  test('restarted before anybody took over: it protects again, and the stream goes on', async () => {
    const { primaryVm, primary, secondary, listen } = await protect(cleanup, { guest });
    client = cleanup.own(await StreamClient.connect(network));
    await client.waitAfter(0, 60_000);
    primary.kill();
    await primary.exited;
    await secondary.waitStatus('loss of the primary', 30_000, ({ reason }) => /lost/.test(reason));
    const next = await startPrimary(cleanup, primaryVm, listen);
    await next.waitState('PROTECTED', PROTECT_MS);
    await client.waitAfter(monotonicMs(), 60_000);
    expect(client.check).toMatchObject({ gaps: 0, regressions: 0 });
  });

  test('restarted with its peer out of reach: the gate stays closed; a person may open it', async () => {
    const { primaryVm, primary, secondary, standbyVm, listen } = await protect(cleanup, { guest });
    client = cleanup.own(await StreamClient.connect(network));
    await client.waitAfter(0, 60_000);
    primary.kill();
    secondary.kill();
    standbyVm.kill();
    await Promise.all([primary.exited, secondary.exited]);
    const next = await startPrimary(cleanup, primaryVm, listen);
    await next.waitState('BLOCKED', 30_000);
    const before = client.check.received;
    await next.waitStatus('another attempt to reach the peer', 30_000, ({ state }) => state === 'BLOCKED');
    expect(client.check.received).toBe(before);
    await next.command('stop');
    expect((await next.exited).code).toBe(0);
    await client.waitAfter(monotonicMs(), 60_000);
    expect(client.check).toMatchObject({ gaps: 0, regressions: 0 });
  });

  test('restarted after the standby took over: fenced, and its VM destroyed', async () => {
    const { primaryVm, primary, secondary, listen } = await protect(cleanup, {
      guest,
      secondaryArgs: ['--witness', 'none'],
    });
    client = cleanup.own(await StreamClient.connect(network));
    primary.kill();
    await secondary.waitState('RUNNING', 60_000);
    const next = await startPrimary(cleanup, primaryVm, listen);
    expect((await next.exited).code).toBe(75);
    expect(next.log()).toContain('FENCED');
    await primaryVm.exited;
    await client.waitAfter(monotonicMs(), 60_000);
    expect(client.check).toMatchObject({ gaps: 0, regressions: 0 });
  });

  test('killed in the middle of its own pause: the VM goes on', async () => {
    const { primaryVm, primary, secondary, listen } = await protect(cleanup, { guest });
    const monitor = await QmpClient.connect(primaryVm.testQmpPath);
    cleanup.add(() => monitor.close());
    await stopInItsPause(primary, monitor);
    const resumed = new Promise((resolve) => monitor.onEvent('RESUME', resolve));
    primary.kill();
    await primary.exited;
    await resumed;
    // The dead agent's connection has ended with its guard, and the next agent finds a VM that runs.
    await secondary.waitStatus('loss of the primary', 30_000, ({ reason }) => /lost/.test(reason));
    const next = await startPrimary(cleanup, primaryVm, listen);
    await next.waitState('PROTECTED', PROTECT_MS);
    client = cleanup.own(await StreamClient.connect(network));
    await client.waitAfter(monotonicMs(), 60_000);
  });

  test('`stop` takes everything off the VM again', async () => {
    const { primaryVm, primary } = await protect(cleanup, { guest });
    client = cleanup.own(await StreamClient.connect(network));
    await primary.command('stop');
    expect((await primary.exited).code).toBe(0);
    const monitor = await QmpClient.connect(primaryVm.testQmpPath);
    const [chardevs, fdsets, status] = await monitor.executeAll([
      ['query-chardev'],
      ['query-fdsets'],
      ['query-status'],
    ]);
    const objects = await monitor.execute('qom-list', { path: '/objects' });
    monitor.close();
    expect(chardevs.filter(({ label }) => label.startsWith('colo-'))).toEqual([]);
    expect(objects.filter(({ name }) => name.startsWith('colo-'))).toEqual([]);
    expect(fdsets).toEqual([]);
    expect(status.running).toBe(true);
    await client.waitAfter(monotonicMs(), 60_000);
    expect(client.check).toMatchObject({ gaps: 0, regressions: 0 });
  });
});

/** Freezes the agent while the VM stands for a checkpoint of its. */
async function stopInItsPause(agent: TestAgent, monitor: QmpClient): Promise<void> {
  for (;;) {
    await new Promise<void>((resolve) => {
      const off = monitor.onEvent('STOP', () => {
        agent.kill('SIGSTOP');
        off();
        resolve();
      });
    });
    // Twice: what the agent had sent before it froze has been carried out by then.
    await monitor.execute('query-status');
    const { running } = await monitor.execute('query-status');
    if (!running) return;
    agent.kill('SIGCONT');
  }
}
