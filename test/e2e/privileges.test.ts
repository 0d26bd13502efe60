/** What docs/security.md lists is all that the agent and its fence command get, and enough; and its secrets stay inside. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  chownSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { hostCredentials } from '../../src/agent/credential-files.ts';
import { TestAgent } from '../../src/testbed/agents.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { pairedFolders } from '../../src/testbed/credentials.ts';
import { packageRoot } from '../../src/testbed/guest.ts';
import { NOBODY_UID } from '../../src/testbed/vm.ts';
import { MAIN } from './support/cli.ts';
import { execute } from './support/disks.ts';
import { MessageProxy } from './support/message-proxy.ts';
import {
  type GuestOptions,
  moreCheckpoints,
  PROTECT_MS,
  protect,
  startVm,
  VM_NAME,
  waitBooted,
} from './support/protection.ts';

let cleanup: Cleanup;
let folder: string;
beforeEach(() => {
  cleanup = new Cleanup();
  folder = mkdtempSync(path.join(tmpdir(), 'colo-privileges-'));
});
afterEach(async () => {
  await cleanup.run();
  rmSync(folder, { recursive: true });
});

/** The table's rows, as setpriv calls them. */
function documented(): string[] {
  const text = readFileSync(path.join(packageRoot, 'docs', 'security.md'), 'utf8');
  return [...text.matchAll(/^\| CAP_([A-Z_]+) \|/gm)].map(([, name = '']) => name.toLowerCase());
}

/** Their numbers in capabilities(7). */
const NUMBERS: Record<string, number> = {
  dac_override: 1,
  dac_read_search: 2,
  kill: 5,
  sys_ptrace: 19,
  sys_nice: 23,
};

function maskOf(names: string[]): string {
  let mask = 0n;
  for (const name of names) mask |= 1n << BigInt(NUMBERS[name] ?? 64);
  return mask.toString(16).padStart(16, '0');
}

/** Of every thread: capabilities and the rest are a thread's, not a process's. */
function ofAllThreads(pid: number, field: string): Set<string | undefined> {
  const threads = readdirSync(`/proc/${pid}/task`);
  return new Set(
    threads.map((thread) => fieldOf(readFileSync(`/proc/${pid}/task/${thread}/status`, 'utf8'), field)),
  );
}

function fieldOf(status: string, field: string): string | undefined {
  return new RegExp(`^${field}:\\s*(.*)$`, 'm').exec(status)?.[1];
}

/** Everything that others on the host, and readers of logs, get to see of an agent. */
async function visibleOf(agent: TestAgent): Promise<string> {
  const commandLine = readFileSync(`/proc/${agent.pid}/cmdline`, 'utf8');
  return agent.log() + commandLine + JSON.stringify(await agent.status());
}

test('a QEMU of another user is protected, and taken over behind a fence, with the documented capabilities and no other', async () => {
  const guest: GuestOptions = { guest: 'baremetal', nobody: true };
  const primaryVm = await startVm(cleanup, 'primary', guest, false);
  await waitBooted(primaryVm, guest);
  const standbyVm = await startVm(cleanup, 'standby', guest, true);
  const names = documented();
  expect(names).toEqual(Object.keys(NUMBERS).sort((a, b) => names.indexOf(a) - names.indexOf(b)));
  const prefix = [
    'setpriv',
    '--no-new-privs',
    `--bounding-set=-all,${names.map((name) => `+${name}`).join()}`,
  ];
  const common = ['--vm', VM_NAME, '--log-level', 'debug'];

  const fenced = path.join(folder, 'fenced');
  const fence = path.join(folder, 'fence');
  writeFileSync(fence, `#!/bin/sh\ncat /proc/self/status > ${fenced}\n`);
  chmodSync(fence, 0o700);
  const secondaryArgs = ['--qmp', standbyVm.qmpPath, '--listen', '127.0.0.1:0', '--witness', 'none'];
  const secondary = cleanup.own(
    await TestAgent.start('secondary', [...common, ...secondaryArgs, '--fence-command', fence], {}, prefix),
  );
  const peer = String((await secondary.status())['listen']);
  const primary = cleanup.own(
    await TestAgent.start('primary', [...common, '--qmp', primaryVm.qmpPath, '--peer', peer], {}, prefix),
  );
  await primary.waitState('PROTECTED', PROTECT_MS);
  await moreCheckpoints(primary, 3);
  for (const agent of [primary, secondary]) {
    for (const field of ['CapEff', 'CapPrm', 'CapBnd'])
      expect(ofAllThreads(agent.pid, field)).toEqual(new Set([maskOf(names)]));
    expect(ofAllThreads(agent.pid, 'NoNewPrivs')).toEqual(new Set(['1']));
    expect((await agent.status())['heartbeat']).toMatchObject({ realTime: true });
  }
  expect(await primary.status()).toMatchObject({ tracker: 'userfaultfd' });

  const seen = (await visibleOf(primary)) + (await visibleOf(secondary));
  primary.kill();
  await secondary.waitState('RUNNING', PROTECT_MS);
  expect(await execute(standbyVm, 'query-status')).toMatchObject({ running: true });
  const ofFence = readFileSync(fenced, 'utf8');
  expect(fieldOf(ofFence, 'CapEff')).toBe(maskOf(names));
  expect(fieldOf(ofFence, 'Uid')).toMatch(/^0\s/);

  const { primary: a, secondary: b } = pairedFolders();
  for (const host of [a, b]) {
    const key = readFileSync(path.join(host, 'key.pem'), 'utf8')
      .split('\n')
      .filter((line) => /^[^-]/.test(line));
    expect(key.length).toBeGreaterThan(1);
    for (const line of key) expect(seen + secondary.log()).not.toContain(line);
  }
});

test('the token of a session stands in no log, status or trace', async () => {
  let token = '';
  const trace = path.join(folder, 'trace');
  const { primary, secondary } = await protect(cleanup, {
    guest: { guest: 'baremetal' },
    primaryArgs: ['--insecure', '--trace', `${trace}-primary`],
    secondaryArgs: ['--insecure', '--trace', `${trace}-secondary`],
    via: async (listen) => {
      const proxy = await MessageProxy.open(listen);
      cleanup.add(() => proxy.destroy());
      proxy.hooks.before = (_from, { body }) => {
        if (body.type === 'ready') token = body.bulkToken;
        return true;
      };
      return proxy.address;
    },
  });
  await moreCheckpoints(primary, 3);
  const seen = (await visibleOf(primary)) + (await visibleOf(secondary));
  for (const agent of [primary, secondary]) {
    await agent.command('stop');
    await agent.exited;
  }
  expect(token).toMatch(/^[0-9a-f]{32}$/);
  const traces = ['primary', 'secondary'].map((role) => readFileSync(`${trace}-${role}`, 'utf8'));
  expect(traces.every((text) => text.length > 1000)).toBe(true);
  for (const text of [seen, ...traces, primary.log(), secondary.log()]) expect(text).not.toContain(token);
});

/** Files in /proc of a process that may be dumped are its user's; of one that may not, root's (proc(5)). */
const ownerOf = (pid: number | undefined): number => statSync(`/proc/${pid}/environ`).uid;

/** For unshare(1): colo-agent as nobody, who may not be allowed to see where the checkout lies (/root has mode 0700). */
function asNobody(checkout: string): string[] {
  mkdirSync(checkout);
  const scene = `mount --bind "$0" "$1"; shift; exec setpriv --reuid=${NOBODY_UID} --regid=${NOBODY_UID} --clear-groups "$@"`;
  const main = path.join(checkout, path.relative(packageRoot, MAIN));
  const shell = ['--mount', '--propagation', 'private', 'sh', '-ec', scene];
  return [...shell, packageRoot, checkout, process.execPath, main];
}

test.each(['primary', 'secondary'])('%s may not be dumped from before it attaches', async (role) => {
  const tls = path.join(folder, 'tls');
  hostCredentials(tls, null);
  writeFileSync(path.join(tls, 'trusted.pem'), readFileSync(path.join(tls, 'certificate.pem')));
  for (const file of ['', 'key.pem', 'certificate.pem', 'trusted.pem'])
    chownSync(path.join(tls, file), NOBODY_UID, NOBODY_UID);
  chmodSync(folder, 0o755);
  // A monitor that says nothing keeps the agent where it is.
  const qmp = path.join(folder, 'qmp');
  const monitor = createServer();
  cleanup.add(() => void monitor.close());
  monitor.listen(qmp);
  await once(monitor, 'listening');
  chmodSync(qmp, 0o777);
  const where = role === 'primary' ? ['--peer', '127.0.0.1:1'] : ['--listen', '127.0.0.1:0'];
  const state = path.join(folder, 'state');
  const args = [role, '--vm', VM_NAME, '--qmp', qmp, ...where, '--tls', tls, '--state-dir', state];
  const agent = spawn('unshare', [...asNobody(path.join(folder, 'checkout')), ...args], { stdio: 'ignore' });
  cleanup.add(() => void agent.kill('SIGKILL'));
  const connected = once(monitor, 'connection').then(([socket]) => cleanup.add(() => void socket.destroy()));
  await Promise.race([connected, once(agent, 'exit').then(() => expect.unreachable('the agent has ended'))]);
  expect(ownerOf(agent.pid)).toBe(0);
  const other = spawn('sleep', ['1000'], { uid: NOBODY_UID, gid: NOBODY_UID });
  cleanup.add(() => void other.kill('SIGKILL'));
  await once(other, 'spawn');
  expect(ownerOf(other.pid)).toBe(NOBODY_UID);
});
