/** scripts/setup.sh where it can't do its work: it says what is missing, and changes nothing. */
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';

const root = path.join(import.meta.dirname, '..', '..');
/** What the script itself needs before it has installed anything. */
const BASICS = ['sh', 'dirname', 'uname', 'id', 'mkdir', 'touch', 'find', 'head', 'tail', 'wc'];

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'colo-setup-'));
  for (const name of BASICS) {
    const { stdout } = spawnSync('sh', ['-c', `command -v ${name}`], { encoding: 'utf8' });
    symlinkSync(stdout.trim(), path.join(folder, name));
  }
  symlinkSync(process.execPath, path.join(folder, 'node'));
});
afterAll(() => rmSync(folder, { recursive: true }));

function setup(PATH: string, ...purpose: string[]) {
  return spawnSync('/bin/sh', ['scripts/setup.sh', ...purpose], {
    cwd: root,
    encoding: 'utf8',
    env: { ...process.env, PATH },
  });
}

test('without apt-get and dnf it says what to install, by the names of both worlds', () => {
  const { status, stdout, stderr } = setup(folder);
  expect(stderr).toMatch(/neither apt-get nor dnf/);
  expect(stderr).toMatch(/Debian: .*\bqemu-system-x86\b.*\bcmake\b.*\bg\+\+/);
  expect(stderr).toMatch(/Fedora: .*\bqemu-system-x86-core\b.*\bcmake\b.*\bgcc-c\+\+/);
  expect(stdout).toBe('');
  expect(status).toBe(1);
});

test('the demo needs nothing that tests alone need', () => {
  const { stderr } = setup(folder, 'demo');
  expect(stderr).toMatch(/Debian: .*\bqemu-system-x86\b.*\bcmake\b.*\bbusybox-static\b/);
  expect(stderr).not.toMatch(/chromium|libvirt|rpm|etcd|gtest/);
});

test('without root it says so, and why', () => {
  // Only told so: a user that is really another may not be able to read the checkout.
  const other = path.join(folder, 'other-user');
  mkdirSync(other);
  writeFileSync(path.join(other, 'id'), '#!/bin/sh\necho 1000\n', { mode: 0o755 });
  const { status, stdout, stderr } = setup(`${other}:${folder}`);
  expect(stderr).toMatch(/root is needed: to read and write the memory of QEMU/);
  expect(stdout).toBe('');
  expect(status).toBe(77);
});
