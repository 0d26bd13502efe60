/** packaging/systemd: the unit holds what docs/security.md says, and what the agent needs from it. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { EXIT } from '../../src/cli/exit-codes.ts';

const root = path.join(import.meta.dirname, '..', '..');
const UNIT = path.join(root, 'packaging', 'systemd', 'colo-agent.service');
const EXPOSURE_MAX = 3.5;
const unit = readFileSync(UNIT, 'utf8');

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'colo-unit-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

/** All values of a directive, in order. */
function values(name: string): string[] {
  return [...unit.matchAll(new RegExp(`^${name}=(.*)$`, 'gm'))].map(([, value = '']) => value);
}

function analyze(...args: string[]) {
  const { status, stdout, stderr } = spawnSync('systemd-analyze', args, {
    encoding: 'utf8',
    env: { ...process.env, SYSTEMD_COLORS: '0', LC_ALL: 'C.UTF-8' },
  });
  return { status, stdout, stderr };
}

test('gives the capabilities that docs/security.md lists, and no other', () => {
  const documented = readFileSync(path.join(root, 'docs', 'security.md'), 'utf8');
  const listed = [...documented.matchAll(/^\| (CAP_[A-Z_]+) \|/gm)].map(([, name]) => name);
  expect(listed.length).toBeGreaterThan(0);
  expect(values('CapabilityBoundingSet')).toEqual([listed.join(' ')]);
  expect(values('AmbientCapabilities')).toEqual([]);
  expect(values('NoNewPrivileges')).toEqual(['yes']);
});

test('lets a service that can do what it must be exposed no more than that', () => {
  const { stdout, stderr, status } = analyze(
    'security',
    '--offline=true',
    `--threshold=${EXPOSURE_MAX * 10}`,
    UNIT,
  );
  expect(status, stdout + stderr).toBe(0);
  const [, level] = /exposure level for colo-agent\.service: ([\d.]+)/.exec(stdout) ?? [];
  expect(Number(level)).toBeLessThanOrEqual(EXPOSURE_MAX);
});

test('is one that systemd understands', () => {
  // The program isn't installed here.
  const copy = path.join(folder, 'colo-agent.service');
  writeFileSync(copy, unit.replaceAll('/usr/bin/colo-agent', '/bin/true'));
  const { status, stderr } = analyze('verify', '--man=no', copy);
  expect(stderr).not.toMatch(/colo-agent\.service/);
  expect(status, stderr).toBe(0);
});

test('tells the daemon alone to end, and never kills a process that may have a machine stopped', () => {
  expect(values('KillMode')).toEqual(['process']);
  expect(values('Type')).toEqual(['notify']);
  expect(values('Restart')).toEqual(['on-failure']);
  expect(values('RestartPreventExitStatus')).toEqual([String(EXIT.configuration)]);
  expect(Number(values('WatchdogSec')[0])).toBeGreaterThan(0);
});

test.each([
  ['MemoryDenyWriteExecute', 'V8'],
  ['PrivateDevices', 'a standby may have block devices'],
  ['PrivateUsers', "QEMU isn't of its users"],
  ['ProcSubset', '/proc/sys/kernel/random/boot_id'],
  ['RestrictRealtime', "the heartbeats' thread"],
])('does not set %s: %s', (name) => {
  expect(values(name)).toEqual([]);
});
