/** Sixteen VMs on one daemon, their standbys on another: four of them fail, each in its own way, and the other twelve don't notice. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { VmOverview } from '../../src/daemon/readings.ts';
import type { VmSummary } from '../../src/daemon/vm-process.ts';
import type { Health } from '../../src/metrics/health.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import type { TestVm } from '../../src/testbed/vm.ts';
import { waitFor } from '../../src/testbed/wait.ts';
import { ask } from '../support/http.ts';
import { parseOpenMetrics } from '../support/openmetrics.ts';
import { colo } from './support/cli.ts';
import { runs, TestDaemon } from './support/daemon.ts';
import { freePort, type GuestOptions, startVm, waitBooted } from './support/protection.ts';

/** The smallest machine there is: it wakes up fifty times a second and writes four pages. */
const GUEST: GuestOptions = { guest: 'baremetal', machine: 'pc', memoryMiB: 8, append: 'pages=4 span=1' };
const NAMES = Array.from({ length: 16 }, (_, index) => `vm${String(index + 1).padStart(2, '0')}`);
const [KILLED, HUNG, LOST, MISCONFIGURED] = NAMES as [string, string, string, string];
const OTHERS = NAMES.slice(4);
/** 64 processes on as few as two cores: whoever waits long is slow, not dead. */
const DEFAULTS = ['interval = 500', 'peer-timeout = 120000', 'stall-timeout = 300000'];
const NOTICE_MS = 120_000;

let cleanup: Cleanup;
let primary: TestDaemon;
let standby: TestDaemon;
const vms = new Map<string, TestVm>();
const lines = new Map<string, string[]>();

beforeAll(async () => {
  cleanup = new Cleanup();
  const ports = await freePorts(NAMES.length);
  primary = new TestDaemon('primary', { defaults: DEFAULTS });
  standby = new TestDaemon('secondary', { defaults: DEFAULTS });
  await Promise.all(NAMES.map((name, index) => startPair(name, `127.0.0.1:${ports[index]}`)));
  // Agents end before their VMs do: nothing is left then that could say something of a VM's end.
  cleanup.own(standby);
  cleanup.own(primary);
  await standby.start();
  await primary.start();
  for (const name of NAMES) await primary.waitState(name, 'PROTECTED');
});
afterAll(() => cleanup.run());

async function freePorts(count: number): Promise<number[]> {
  const ports = new Set<number>();
  while (ports.size < count) ports.add(await freePort());
  return [...ports];
}

async function startPair(name: string, address: string): Promise<void> {
  const vm = await startVm(cleanup, name, GUEST, false);
  const twin = await startVm(cleanup, `${name}-standby`, GUEST, true);
  await waitBooted(vm, GUEST);
  vms.set(name, vm);
  lines.set(name, [`qmp = "${vm.qmpPath}"`, `peer = "${address}"`]);
  primary.writeVm(name, lines.get(name) as string[]);
  standby.writeVm(name, [`qmp = "${twin.qmpPath}"`, `listen = "${address}"`]);
}

type ByVm = Map<string, number>;

/** What is told of all VMs at one moment: a metric by VM, of the series with these labels. */
async function scrape(): Promise<(metric: string, labels?: Record<string, string>) => ByVm> {
  const where = { socketPath: primary.metricsPath };
  const { code, body } = await ask(where, '/metrics', {
    accept: 'application/openmetrics-text; version=1.0.0',
  });
  expect(code).toBe(200);
  const all = [...parseOpenMetrics(body).values()].flatMap(({ samples }) => samples);
  return (metric, labels = {}) => {
    const series = all.filter(
      (sample) =>
        sample.name === `colo_agent_${metric}` &&
        Object.entries(labels).every(([label, word]) => sample.labels.get(label) === word),
    );
    return new Map(series.map((sample) => [sample.labels.get('vm') as string, sample.value]));
  };
}

async function health(): Promise<Health & { code: number }> {
  const { code, body } = await ask({ socketPath: primary.metricsPath }, '/health');
  return { code, ...(JSON.parse(body) as Health) };
}

function agentsOf(all: readonly VmSummary[], names: readonly string[]): (number | null)[] {
  return all.filter(({ vm }) => names.includes(vm)).map(({ agentPid }) => agentPid);
}

/** Until each of them has committed so many more. */
async function moreCheckpoints(names: readonly string[], more: number): Promise<void> {
  const countOf = async (name: string) => (await primary.status(name)).checkpoints;
  const before = await Promise.all(names.map(countOf));
  // One after the other: asking all of them all the time would be most of this machine's work.
  for (const [index, name] of names.entries()) {
    const enough = (before[index] as number) + more;
    await waitFor(`${more} checkpoints of ${name}`, NOTICE_MS, async () => (await countOf(name)) >= enough);
  }
}

function misconfigure(): void {
  primary.writeVm(MISCONFIGURED, [...(lines.get(MISCONFIGURED) as string[]), 'tls = "/nowhere"']);
}

describe('sixteen VMs on one daemon', () => {
  test('all are protected, and one address tells of all of them', async () => {
    for (const name of NAMES) expect((await standby.waitState(name, 'STANDBY')).role).toBe('secondary');
    await waitFor('health of all', NOTICE_MS, async () => (await health()).healthy);
    const all = await waitFor('answers of all', NOTICE_MS, async () => {
      const each = (await scrape())('up');
      return [...each.values()].every((up) => up === 1) && each;
    });
    expect([...all.keys()]).toEqual(NAMES);
    await moreCheckpoints(NAMES, 2);
  });

  test('an agent that is killed, one that stands still, a QEMU that dies, a VM that is misconfigured: the others go on', async () => {
    const before = await primary.list();
    const pidOf = (name: string) => agentsOf(before, [name])[0] as number;
    // A daemon that is killed doesn't end an agent that can't hear of it.
    const hung = pidOf(HUNG);
    cleanup.add(() => void (runs(hung) && process.kill(hung, 'SIGCONT')));
    process.kill(pidOf(KILLED), 'SIGKILL');
    process.kill(hung, 'SIGSTOP');
    (vms.get(LOST) as TestVm).kill();
    misconfigure();
    expect(await primary.reload()).toMatchObject({ changed: [MISCONFIGURED], added: [], removed: [] });
    await primary.waitVm(KILLED, 'another agent', ({ restarts }) => restarts > 0);
    await primary.waitState(LOST, 'WAITING');
    await primary.waitState(MISCONFIGURED, 'REFUSED');
    await moreCheckpoints(OTHERS, 3);
    const after = await primary.list();
    expect(agentsOf(after, OTHERS)).toEqual(agentsOf(before, OTHERS));
    expect(after.filter(({ vm, restarts }) => OTHERS.includes(vm) && restarts > 0)).toEqual([]);
  });

  test('metrics and health tell of the failed ones, too, and wait for none that stands still', async () => {
    await primary.waitState(KILLED, 'PROTECTED');
    // Three seconds for each are little on a machine that is busy with sixteen VMs.
    const told = await waitFor('answers of all that run', NOTICE_MS, async () => {
      const each = await scrape();
      const silent = NAMES.filter((name) => each('up').get(name) !== 1);
      return silent.join() === [HUNG, LOST, MISCONFIGURED].join() && each;
    });
    expect(told('state', { state: 'REFUSED' }).get(MISCONFIGURED)).toBe(1);
    expect(told('restarts_total').get(KILLED)).toBe(1);
    const { code, unwell } = await waitFor('three that are not well', NOTICE_MS, async () => {
      const { code: answer, vms: all } = await health();
      const sick = all.filter((vm) => !vm.healthy);
      return sick.length === 3 && { code: answer, unwell: sick };
    });
    expect(code).toBe(503);
    expect(unwell).toMatchObject([
      { vm: HUNG, state: null, reason: expect.stringMatching(/did not answer within 3 s/) },
      { vm: LOST, state: 'WAITING', reason: expect.stringContaining((vms.get(LOST) as TestVm).qmpPath) },
      { vm: MISCONFIGURED, state: 'REFUSED', reason: expect.stringContaining('/nowhere') },
    ]);
  });

  test('so does top', async () => {
    // A second for each is little on a machine that is busy with sixteen VMs.
    const { stdout } = await waitFor('answers of all that run', NOTICE_MS, async () => {
      const shown = await colo('top', '--once', '--control', primary.controlPath);
      return shown.stdout.match(/NO ANSWER/g)?.length === 1 && shown;
    });
    const words = stdout
      .split('\n')
      .slice(1)
      .map((line) => /^(\S+) +\S+ +(NO ANSWER|\S+)/.exec(line)?.slice(1).join(' '));
    expect(words.slice(0, 4)).toEqual([
      `${KILLED} PROTECTED`,
      `${HUNG} NO ANSWER`,
      `${LOST} WAITING`,
      `${MISCONFIGURED} REFUSED`,
    ]);
    expect(words.slice(4, NAMES.length)).toEqual(OTHERS.map((name) => `${name} PROTECTED`));
  });

  test('so does `status` of all', async () => {
    const silent = (vms: VmOverview[]) => vms.filter((vm) => !('pauseMs' in vm));
    // As above.
    const all = await waitFor('answers of all that run', NOTICE_MS, async () => {
      const { stdout } = await colo('status', '--json', '--control', primary.controlPath);
      const each = JSON.parse(stdout) as VmOverview[];
      return silent(each).length === 3 && each;
    });
    expect(all.map(({ vm }) => vm)).toEqual(NAMES);
    expect(silent(all)).toMatchObject([
      { vm: HUNG, state: null, reason: expect.stringMatching(/did not answer within 3 s/) },
      { vm: LOST, state: 'WAITING' },
      { vm: MISCONFIGURED, state: 'REFUSED' },
    ]);
  });

  test('what is mended is protected again', async () => {
    process.kill(agentsOf(await primary.list(), [HUNG])[0] as number, 'SIGCONT');
    primary.writeVm(MISCONFIGURED, lines.get(MISCONFIGURED) as string[]);
    expect(await primary.reload()).toMatchObject({ changed: [MISCONFIGURED] });
    await primary.waitState(MISCONFIGURED, 'PROTECTED');
    await moreCheckpoints([HUNG, KILLED, ...OTHERS], 2);
    const restarted = (await primary.list()).filter(({ restarts }) => restarts > 0).map(({ vm }) => vm);
    expect(restarted).toEqual([KILLED, MISCONFIGURED]);
  });
});
