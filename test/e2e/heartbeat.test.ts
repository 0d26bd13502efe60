/** Who is alive: a cut network, agents that stand still, and event loops that do, each told from a death where it can be. */
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { AgentLink } from '../../src/testbed/agent-link.ts';
import { TestAgent } from '../../src/testbed/agents.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import {
  type GuestOptions,
  moreCheckpoints,
  PROTECT_MS,
  startVm,
  VM_NAME,
  waitBooted,
} from './support/protection.ts';

const guest: GuestOptions = { guest: 'baremetal' };
const HANG = fileURLToPath(new URL('./support/hang.mjs', import.meta.url));
const PATIENT = ['--peer-timeout', '60000', '--stall-timeout', '60000'];

let cleanup: Cleanup;
beforeEach(() => {
  cleanup = new Cleanup();
});
afterEach(() => cleanup.run());

interface Options {
  primaryArgs?: string[];
  secondaryArgs?: string[];
  /** How long SIGUSR2 makes an event loop stand still. */
  hangMs?: number;
  /** A command that takes privileges away from both agents. */
  prefix?: string[];
}

interface Pair {
  link: AgentLink;
  primary: TestAgent;
  secondary: TestAgent;
}

/** A protected VM whose agents reach each other over a network of their own. */
async function pair({
  primaryArgs = [],
  secondaryArgs = [],
  hangMs = 0,
  prefix = [],
}: Options): Promise<Pair> {
  const link = cleanup.own(await AgentLink.create());
  const env = { NODE_OPTIONS: `--import ${HANG}`, COLO_TEST_HANG_MS: String(hangMs) };
  const primaryVm = await startVm(cleanup, 'primary', guest, false);
  const standbyVm = await startVm(cleanup, 'standby', guest, true);
  await waitBooted(primaryVm, guest);
  const common = (qmp: string) => ['--vm', VM_NAME, '--qmp', qmp, '--log-level', 'debug'];
  const secondary = cleanup.own(
    await TestAgent.start(
      'secondary',
      [...common(standbyVm.qmpPath), '--listen', `${link.address}:7000`, ...secondaryArgs],
      env,
      [...link.prefix('secondary'), ...prefix],
    ),
  );
  const primary = cleanup.own(
    await TestAgent.start(
      'primary',
      [...common(primaryVm.qmpPath), '--peer', `${link.address}:7000`, ...primaryArgs],
      env,
      [...link.prefix('primary'), ...prefix],
    ),
  );
  await primary.waitState('PROTECTED', PROTECT_MS);
  return { link, primary, secondary };
}

describe('a link', () => {
  test('carries heartbeats, and status says how they fare', async () => {
    const { primary, secondary } = await pair({});
    for (const agent of [primary, secondary]) {
      const status = await agent.waitStatus('heartbeats', 30_000, (now) => beats(now) > 10);
      const { rttUs, gapUs } = status['heartbeat'] as { rttUs: { max: number }; gapUs: { max: number } };
      expect(rttUs.max).toBeGreaterThan(0);
      expect(gapUs.max).toBeGreaterThan(0);
    }
  });

  test.each(['is cut', 'goes down'])('that %s is noticed by both sides', async (how) => {
    const { link, primary, secondary } = await pair({ secondaryArgs: ['--witness', 'none'] });
    if (how === 'is cut') await link.cut();
    else await link.takeDown('primary');
    const took = await secondary.waitState('RUNNING', 60_000);
    expect(took.reason).toBe('took over');
    const exposed = await primary.waitState('EXPOSED', 60_000);
    expect(secondary.log()).toMatch(/the primary has said nothing for \d+ ms/);
    expect(primary.log()).toMatch(/the secondary has said nothing for \d+ ms/);
    expect(exposed['heartbeat']).toBeNull();
  });
});

describe('agents that may neither go first nor lock memory', () => {
  test('say what comes of it, and protect all the same', async () => {
    const limits = ['prlimit', '--rtprio=0', '--memlock=0', '--'];
    const prefix = [...limits, 'setpriv', '--bounding-set=-sys_nice,-ipc_lock,-sys_resource', '--'];
    const { primary, secondary } = await pair({ prefix });
    for (const agent of [primary, secondary]) {
      const status = await agent.waitStatus('heartbeats', 30_000, (now) => beats(now) > 10);
      expect(status['heartbeat']).toMatchObject({ realTime: false });
      expect(agent.log().match(/has no real-time priority: .* a longer --peer-timeout/g)).toHaveLength(1);
      expect(agent.log().match(/is not locked: .* a longer --peer-timeout/g)).toHaveLength(1);
    }
  });
});

describe('an agent of the primary that stands still', () => {
  test('for less than the time-out loses nothing', async () => {
    const { primary, secondary } = await pair({
      primaryArgs: PATIENT,
      secondaryArgs: ['--witness', 'none', ...PATIENT],
    });
    const { generation } = await primary.status();
    process.kill(primary.pid, 'SIGSTOP');
    await sleep(2000); // how long it stands is what is tested
    process.kill(primary.pid, 'SIGCONT');
    const status = await moreCheckpoints(primary, 5);
    expect(status['generation']).toBe(generation);
    expect((await secondary.status()).state).toBe('STANDBY');
  });

  test('for longer than its own time-out does not take its peer for dead', async () => {
    const { primary, secondary } = await pair({
      primaryArgs: ['--peer-timeout', '500'],
      secondaryArgs: PATIENT,
    });
    const { generation } = await primary.status();
    process.kill(primary.pid, 'SIGSTOP');
    await sleep(2000); // how long it stands is what is tested
    process.kill(primary.pid, 'SIGCONT');
    const status = await moreCheckpoints(primary, 5);
    expect(status['generation']).toBe(generation);
    expect((await secondary.status()).state).toBe('STANDBY');
  });

  test('for longer than the time-out is taken for dead', async () => {
    const { primary, secondary } = await pair({ secondaryArgs: ['--witness', 'none'] });
    process.kill(primary.pid, 'SIGSTOP');
    await secondary.waitState('RUNNING', 60_000);
    expect(secondary.log()).toMatch(/the primary has said nothing for \d+ ms/);
  });
});

describe('an event loop that stands still', () => {
  test.each(['primary', 'secondary'] as const)('on the %s, for a while, is no death', async (side) => {
    const both = ['--peer-timeout', '500'];
    const agents = await pair({
      primaryArgs: both,
      secondaryArgs: [...both, '--witness', 'none'],
      hangMs: 3000,
    });
    const { generation } = await agents.primary.status();
    process.kill(agents[side].pid, 'SIGUSR2');
    await sleep(500); // the loop must have begun to hang before it is asked what became of it
    const status = await moreCheckpoints(agents.primary, 5);
    expect(status['generation']).toBe(generation);
    expect((await agents.secondary.status()).state).toBe('STANDBY');
  });

  test('on the primary, for good, is one', async () => {
    const { primary, secondary } = await pair({
      secondaryArgs: ['--witness', 'none', '--stall-timeout', '1500'],
      hangMs: 3_600_000,
    });
    process.kill(primary.pid, 'SIGUSR2');
    await secondary.waitState('RUNNING', 60_000);
    expect(secondary.log()).toMatch(/the primary lives, but its agent does nothing/);
  });

  test('on the secondary, for good, is one', async () => {
    const { primary, secondary } = await pair({
      primaryArgs: ['--stall-timeout', '1500'],
      hangMs: 3_600_000,
    });
    process.kill(secondary.pid, 'SIGUSR2');
    await primary.waitState('EXPOSED', 60_000);
    expect(primary.log()).toMatch(/the secondary lives, but its agent does nothing/);
  });
});

function beats(status: { [field: string]: unknown }): number {
  return (status['heartbeat'] as { received: number } | null)?.received ?? 0;
}
