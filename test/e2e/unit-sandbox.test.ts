/** What packaging/systemd/colo-agent.service takes away, without systemd: its system calls, capabilities and what it hides. A VM is protected and taken over so. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { TestAgent } from '../../src/testbed/agents.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { packageRoot } from '../../src/testbed/guest.ts';
import { execute } from './support/disks.ts';
import {
  type GuestOptions,
  moreCheckpoints,
  PROTECT_MS,
  startVm,
  VM_NAME,
  waitBooted,
} from './support/protection.ts';

const UNIT = path.join(packageRoot, 'packaging', 'systemd', 'colo-agent.service');
/** ProtectProc=invisible, ProtectKernelTunables=, ProtectSystem=full (of it /usr alone: the test's own files lie elsewhere), UMask=. */
const MOUNTS = `
  mount -t proc -o hidepid=invisible proc /proc &&
  mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys &&
  mount --bind /usr /usr && mount -o remount,ro,bind /usr &&
  umask 0077 && exec "$@"`;

let cleanup: Cleanup;
let folder: string;
beforeEach(() => {
  cleanup = new Cleanup();
  folder = mkdtempSync(path.join(tmpdir(), 'colo-sandbox-'));
});
afterEach(async () => {
  await cleanup.run();
  rmSync(folder, { recursive: true });
});

function run(command: string, args: string[]): string {
  const { status, stdout, stderr } = spawnSync(command, args, { encoding: 'utf8' });
  expect(status, `${command}: ${stderr}`).toBe(0);
  return stdout;
}

function directive(name: string): string[] {
  const value = new RegExp(`^${name}=(.*)$`, 'm').exec(readFileSync(UNIT, 'utf8'))?.[1];
  return (value as string).split(' ');
}

/** The system calls of a group, and of the groups in it, as systemd has them. */
function callsOf(group: string): string[] {
  return run('systemd-analyze', ['syscall-filter', group])
    .split('\n')
    .slice(1)
    .map((line) => line.trim())
    .filter((line) => line !== '' && !line.startsWith('#'))
    .flatMap((name) => (name.startsWith('@') ? callsOf(name) : [name]));
}

/** A command that starts another as the unit would. */
function sandbox(): string[] {
  const confine = path.join(folder, 'confine');
  run('cc', ['-o', confine, path.join(packageRoot, 'test', 'e2e', 'support', 'confine.c'), '-lseccomp']);
  // systemd adds @default by itself.
  const filter = ['@default', ...directive('SystemCallFilter')];
  const calls = new Set(filter.flatMap((name) => (name.startsWith('@') ? callsOf(name) : [name])));
  const capabilities = directive('CapabilityBoundingSet').map((name) => `+${name.slice(4).toLowerCase()}`);
  return [
    ...['unshare', '--mount', 'sh', '-c', MOUNTS, 'sh'],
    ...['setpriv', '--no-new-privs', `--bounding-set=-all,${capabilities.join()}`],
    ...[confine, ...calls, '--'],
  ];
}

test('is enough to protect a VM of another user and to take it over', async () => {
  const prefix = sandbox();
  const guest: GuestOptions = { guest: 'baremetal', nobody: true };
  const primaryVm = await startVm(cleanup, 'primary', guest, false);
  await waitBooted(primaryVm, guest);
  const standbyVm = await startVm(cleanup, 'standby', guest, true);
  const options = (qmp: string) => ['--vm', VM_NAME, '--qmp', qmp, '--log-level', 'debug'];
  const standby = [...options(standbyVm.qmpPath), '--listen', '127.0.0.1:0', '--witness', 'none'];
  const secondary = cleanup.own(await TestAgent.start('secondary', standby, {}, prefix));
  // It is in force: 2 is a filter.
  expect(readFileSync(`/proc/${secondary.pid}/status`, 'utf8')).toMatch(/^Seccomp:\s2$/m);
  const { listen } = await secondary.status();
  const protecting = [...options(primaryVm.qmpPath), '--peer', String(listen)];
  const primary = cleanup.own(await TestAgent.start('primary', protecting, {}, prefix));
  await moreCheckpoints(primary, 3);
  expect(await primary.status()).toMatchObject({ tracker: 'userfaultfd', heartbeat: { realTime: true } });
  primary.kill();
  await secondary.waitState('RUNNING', PROTECT_MS);
  expect(await execute(standbyVm, 'query-status')).toMatchObject({ running: true });
});
