/** Two hosts' daemons on this one, two VMs: each fails alone, and what isn't changed isn't touched. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { TakeOverRecord } from '../../src/agent/take-over-record.ts';
import { QmpClient } from '../../src/qmp/client.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import type { TestVm } from '../../src/testbed/vm.ts';
import { waitFor } from '../../src/testbed/wait.ts';
import { ask } from '../support/http.ts';
import { colo, MAIN } from './support/cli.ts';
import { runs, TestDaemon } from './support/daemon.ts';
import { freePort, type GuestOptions, startVm, waitBooted } from './support/protection.ts';
import { TestTerminal } from './support/terminal.ts';

const GUEST: GuestOptions = { guest: 'baremetal' };
const NAMES = ['a', 'b'] as const;
type Name = (typeof NAMES)[number];

let cleanup: Cleanup;
let primary: TestDaemon;
let standby: TestDaemon;
const vms = {} as Record<Name, TestVm>;
const peers = {} as Record<Name, string>;

beforeAll(async () => {
  cleanup = new Cleanup();
  primary = new TestDaemon('primary');
  standby = new TestDaemon('secondary');
  for (const name of NAMES) {
    vms[name] = await startVm(cleanup, name, GUEST, false);
    await waitBooted(vms[name], GUEST);
    const twin = await startVm(cleanup, `${name}-standby`, GUEST, true);
    peers[name] = `127.0.0.1:${await freePort()}`;
    standby.writeVm(name, [`qmp = "${twin.qmpPath}"`, `listen = "${peers[name]}"`]);
  }
  // Agents end before their VMs do: nothing is left then that could say something of a VM's end.
  cleanup.own(standby);
  cleanup.own(primary);
  protect('a');
  await standby.start();
  await primary.start();
});
afterAll(() => cleanup.run());

function protect(name: Name): void {
  primary.writeVm(name, [`qmp = "${vms[name].qmpPath}"`, `peer = "${peers[name]}"`]);
}

async function isRunning(vm: TestVm): Promise<boolean> {
  const monitor = await QmpClient.connect(vm.testQmpPath);
  const { status } = await monitor.execute('query-status');
  monitor.close();
  return status === 'running';
}

async function order(vm: TestVm, command: 'stop' | 'cont'): Promise<void> {
  const monitor = await QmpClient.connect(vm.testQmpPath);
  await monitor.execute(command);
  monitor.close();
}

async function epochOf(name: Name): Promise<number> {
  return (await primary.status(name)).epoch;
}

describe('one daemon a host', () => {
  test('each VM gets the role that its QEMU is in, and is protected', async () => {
    expect(await standby.waitVm('a', 'a role', ({ role }) => role !== null)).toMatchObject({
      role: 'secondary',
    });
    const { role, agentPid } = await primary.waitState('a', 'PROTECTED');
    expect(role).toBe('primary');
    expect((await primary.status('a')).agentPid).toBe(agentPid);
  });

  test('a reload adds a VM and leaves the other alone; a broken configuration changes nothing', async () => {
    const before = await primary.waitState('a', 'PROTECTED');
    protect('b');
    // However many ask at once.
    expect(await Promise.all([primary.reload(), primary.reload()])).toEqual([
      { added: ['b'], changed: [], removed: [], unchanged: ['a'] },
      { added: [], changed: [], removed: [], unchanged: ['a', 'b'] },
    ]);
    await primary.waitState('b', 'PROTECTED');
    primary.writeVm('c', ['qmpp = "/x"']);
    await expect(primary.reload()).rejects.toMatchObject({
      code: 'configuration',
      message: expect.stringMatching(/c.toml:2:1: unknown key `qmpp`; did you mean `qmp`\?/),
    });
    expect((await colo('config', 'check', '--config', primary.configFile)).code).toBe(78);
    primary.writeVm('c', null);
    expect(await primary.vm('a')).toMatchObject({ agentPid: before.agentPid, restarts: 0 });
    expect((await primary.list()).map(({ vm }) => vm)).toEqual(['a', 'b']);
  });

  test('the commands reach each VM, and say which there are', async () => {
    const at = ['--control', primary.controlPath];
    await primary.waitState('a', 'PROTECTED');
    expect(JSON.parse((await colo('status', 'b', '--json', ...at)).stdout)).toMatchObject({
      vm: 'b',
      role: 'primary',
    });
    expect((await colo('status', ...at)).stdout).toMatch(
      /^VM +ROLE +STATE +CHECKPOINT +PAUSE p50\/p99 +HELD +REASON\na +primary +PROTECTED +\d+ m?s ago +[\d.]+\/[\d.]+ ms +0 \(0\.0 MB\) +the standby holds the last checkpoint\nb +primary /,
    );
    expect(await colo('drill', ...at)).toMatchObject({
      code: 64,
      stderr: 'colo-agent: name one of the VMs here: a, b\n',
    });
    expect((await colo('list', ...at)).stdout).toMatch(/^VM +ROLE +STATE +REASON\na +primary +PROTECTED/);
    const events = (await colo('events', '--json', '--vm', 'b', ...at)).stdout.trim().split('\n');
    const states = events.map((line) => JSON.parse(line)).map(({ vm, state }) => `${vm} ${state}`);
    expect(states).toContain('b STARTING');
    expect(states.at(-1)).toBe('b PROTECTED');
  });

  test('top shows them on a terminal, and gives it back', async () => {
    const terminal = cleanup.own(
      new TestTerminal(['top', '--interval', '200', '--control', primary.controlPath]),
    );
    await terminal.waitFor(/\nb +primary PROTECTED +\d\.\ds +\S+ms +\S*\d/); // with a rate
    terminal.type('s');
    await terminal.waitFor(/s sort: name \[pause\] dirty/);
    terminal.type('q');
    expect(await terminal.ended).toBe(0);
    expect(terminal.output.startsWith('\x1b[?1049h\x1b[?25l')).toBe(true);
    expect(terminal.output.endsWith('\x1b[?25h\x1b[?1049l')).toBe(true);

    const interrupted = cleanup.own(new TestTerminal(['top', '--control', primary.controlPath]));
    await interrupted.waitFor(/\nb +primary/);
    interrupted.type('\x03');
    expect(await interrupted.ended).toBe(0);
    expect(interrupted.output.endsWith('\x1b[?25h\x1b[?1049l')).toBe(true);

    const once = await colo('top', '--once', '--interval', '300', '--control', primary.controlPath);
    expect(once.stdout).toMatch(/^VM +ROLE .*\na +primary PROTECTED .*\nb +primary PROTECTED /);
    expect(await colo('top', '--control', primary.controlPath)).toMatchObject({
      code: 64,
      stderr: 'colo-agent: `top` needs a terminal: use `top --once`, `status --watch` or `list`\n',
    });
  });

  test('`status --watch` tells of them again and again, until it is interrupted', async () => {
    const args = [MAIN, 'status', '--watch', '--control', primary.controlPath];
    const watching = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] });
    cleanup.add(() => void watching.kill('SIGKILL'));
    let told = '';
    watching.stdout.setEncoding('utf8').on('data', (text: string) => {
      told += text;
    });
    await waitFor('a second table', 60_000, () => told.split(/^VM +ROLE/m).length > 2);
    watching.kill('SIGINT');
    expect((await once(watching, 'exit'))[1]).toBe('SIGINT');
    expect(told).not.toContain('\x1b');

    const terminal = cleanup.own(new TestTerminal(['status', '--watch', '--control', primary.controlPath]));
    await waitFor('a third look', 60_000, () => terminal.output.split('\x1b[H').length > 3);
    terminal.type('\x03');
    await terminal.ended;
    expect(terminal.output.split('\x1b[2J')).toHaveLength(2); // cleared once, and painted over from then on
    const look = terminal.output.split('\x1b[H')[2]?.replaceAll('\x1b[K\r\n', '\n');
    expect(look).toMatch(/^VM +ROLE .*\na +primary .*\nb +primary .*\n/);
  });

  test('a reload moves the metrics of all', async () => {
    const [before, after] = [primary.metricsPath, `${primary.metricsPath}.new`];
    const configuration = readFileSync(primary.configFile, 'utf8');
    writeFileSync(primary.configFile, configuration.replace(before, after));
    expect(await primary.reload()).toMatchObject({ changed: [], unchanged: ['a', 'b'] });
    expect((await ask({ socketPath: after }, '/health')).body).toContain('"vm":"b"');
    await expect(ask({ socketPath: before }, '/health')).rejects.toThrow('ENOENT');
    writeFileSync(primary.configFile, configuration);
    await primary.reload();
  });

  test('an agent that is killed comes back and protects again; the other VM’s checkpoints go on', async () => {
    const [a, b] = [await primary.vm('a'), await primary.waitState('b', 'PROTECTED')];
    const epoch = await epochOf('b');
    process.kill(a.agentPid as number, 'SIGKILL');
    await waitFor('more checkpoints of b', 60_000, async () => (await epochOf('b')) > epoch + 3);
    const again = await primary.waitVm(
      'a',
      'another protection',
      (vm) => vm.state === 'PROTECTED' && vm.restarts > 0,
    );
    expect(again.agentPid).not.toBe(a.agentPid);
    expect(await primary.vm('b')).toMatchObject({ agentPid: b.agentPid, restarts: 0, state: 'PROTECTED' });
  });

  test('a QEMU that dies: its VM alone goes on at its standby', async () => {
    const b = await primary.waitState('b', 'PROTECTED');
    vms.a.kill();
    await vms.a.exited;
    await waitFor('take-over', 60_000, async () => {
      await standby.failover('a').catch(() => {}); // refused until the loss is noticed
      return (await standby.vm('a')).state === 'RUNNING';
    });
    await primary.waitVm(
      'a',
      'wait for its QEMU',
      ({ state, reason }) => state === 'WAITING' && reason.includes(vms.a.qmpPath),
    );
    expect(await primary.vm('b')).toMatchObject({ agentPid: b.agentPid, state: 'PROTECTED' });
    expect((await standby.vm('b')).state).not.toBe('RUNNING');
  });

  test('the take-over has a timeline', async () => {
    const at = ['--control', standby.controlPath];
    const listed = (await colo('events', '--vm', 'a', ...at)).stdout;
    const [, id = ''] = /took over at checkpoint .* \(--failover (a-\w+)\)/.exec(listed) ?? [];
    const record = JSON.parse(
      (await colo('events', '--failover', id, '--json', ...at)).stdout,
    ) as TakeOverRecord;
    expect(record).toMatchObject({
      vm: 'a',
      outcome: 'took-over',
      decidedBy: 'person',
      cause: 'ordered by a person',
    });
    const steps = record.steps.map(({ what }) => what);
    expect(steps).toEqual(expect.arrayContaining(['a person orders it by force', 'settle disks', 'cont']));
    expect(steps.at(-1)).toBe('the guest runs here');

    const last = await colo('events', '--failover', 'last', ...at);
    expect(last.stdout).toContain(`${id}: a took over at checkpoint ${record.epoch}`);
    expect(await colo('events', '--failover', 'x', ...at)).toMatchObject({
      code: 64,
      stderr: `colo-agent: there is no take-over \`x\`: known are ${id}\n`,
    });
  });

  test('a daemon that is killed takes its agents with it, and its VMs go on; the next one protects them again', async () => {
    const { agentPid } = await primary.waitState('b', 'PROTECTED');
    await primary.end('SIGKILL');
    await waitFor('end of the agent', 60_000, () => !runs(agentPid));
    expect(await isRunning(vms.b)).toBe(true);
    // A VM that stands could be anybody's; what it was here is remembered.
    await order(vms.b, 'stop');
    await primary.start();
    await primary.waitVm('b', 'its role', ({ role, agentPid }) => role === 'primary' && agentPid !== null);
    await order(vms.b, 'cont');
    await primary.waitState('b', 'PROTECTED');
  });

  test('a VM that is taken out of the configuration goes on unprotected, and so do all at the daemon’s end', async () => {
    const { agentPid } = await primary.waitState('b', 'PROTECTED');
    primary.writeVm('b', null);
    expect(await primary.reload()).toMatchObject({ removed: ['b'] });
    await waitFor('end of the agent', 60_000, () => !runs(agentPid));
    expect(await isRunning(vms.b)).toBe(true);
    const agents = (await standby.list()).map((vm) => vm.agentPid);
    expect(await standby.end('SIGTERM')).toEqual({ code: 0, signal: null });
    expect(agents.filter(runs)).toEqual([]);
  });

  test('a configuration that is broken from the start: no daemon, and why', async () => {
    const file = `${primary.configFile}.broken.toml`;
    writeFileSync(file, 'stat-dir = "/x"\n');
    const { code, stderr } = await colo(
      'serve',
      '--config',
      file,
      '--control',
      `${primary.controlPath}.other`,
    );
    expect({ code, stderr }).toMatchObject({
      code: 78,
      stderr: `colo-agent: ${file}:1:1: unknown key \`stat-dir\`; did you mean \`state-dir\`?\n`,
    });
    const long = `${primary.controlPath}.${'x'.repeat(99)}`;
    expect(await colo('serve', '--config', primary.configFile, '--control', long)).toMatchObject({
      code: 78,
      stderr: `colo-agent: the control socket ${long} has ${long.length} bytes, and a socket's path 99 at the most: give \`serve --control\` another path\n`,
    });
  });
});
