/** No take-over runs a VM whose other host isn't fenced, where a fence is asked for. */
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { TestAgent } from '../../src/testbed/agents.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { colo } from './support/cli.ts';
import { execute } from './support/disks.ts';
import { type GuestOptions, protect, VM_NAME } from './support/protection.ts';

const guest: GuestOptions = { guest: 'baremetal' };

let cleanup: Cleanup;
let folder: string;
beforeEach(() => {
  cleanup = new Cleanup();
  folder = mkdtempSync(path.join(tmpdir(), 'colo-fence-'));
});
afterEach(async () => {
  await cleanup.run();
  rmSync(folder, { recursive: true });
});

function script(text: string): string {
  const file = path.join(folder, 'fence');
  writeFileSync(file, `#!/bin/sh\n${text}\n`);
  chmodSync(file, 0o755);
  return file;
}

test('the command is told whom to fence, and the VM runs when it has succeeded', async () => {
  const called = path.join(folder, 'called');
  const command = script(`echo "$@, $COLO_VM $COLO_HOST $COLO_GENERATION" > ${called}`);
  const { primary, secondary } = await protect(cleanup, {
    guest,
    secondaryArgs: ['--witness', 'none', '--fence-command', command],
  });
  const generation = (await secondary.status())['generation'] as number;
  expect(existsSync(called)).toBe(false);
  primary.kill();
  await secondary.waitState('RUNNING', 60_000);
  const target = `${VM_NAME} 127.0.0.1 ${generation + 1}`;
  expect(readFileSync(called, 'utf8')).toBe(`${target}, ${target}\n`);
});

test('a command that fails keeps the VM stopped, until a person has mended it', async () => {
  const command = script('echo no answer from the power switch >&2; exit 1');
  const { primary, secondary, standbyVm } = await protect(cleanup, {
    guest,
    secondaryArgs: ['--witness', 'none', '--fence-command', command, '--fence-host', 'rack4-7'],
  });
  primary.kill();
  const { reason } = await secondary.waitState('BLOCKED', 60_000);
  expect(reason).toContain('rack4-7 is not fenced');
  expect(reason).toContain('exited with 1; it said: no answer from the power switch');
  expect(await execute(standbyVm, 'query-status')).toMatchObject({ running: false });

  script('exit 0');
  const ended = await colo('failover', '--control', secondary.controlPath);
  expect(ended).toMatchObject({ code: 0 });
  expect((await secondary.status()).state).toBe('RUNNING');
});

/** A standby whose primary is dead and isn't fenced. */
async function blocked(): Promise<{ secondary: TestAgent; reason: string }> {
  const secondaryArgs = ['--witness', 'none', '--fence-command', script('exit 1')];
  const { primary, secondary } = await protect(cleanup, { guest, secondaryArgs });
  primary.kill();
  const { reason } = await secondary.waitState('BLOCKED', 60_000);
  return { secondary, reason };
}

test('a command that fails is tried again by itself', async () => {
  const { secondary, reason } = await blocked();
  expect(reason).toContain('tried again every 10 s');
  script('exit 0');
  await secondary.waitState('RUNNING', 60_000);
});

test('a person who has fenced by hand needs no command', async () => {
  const { secondary, reason } = await blocked();
  expect(reason).toContain(`colo-agent failover --force ${VM_NAME}`);
  expect(await secondary.command('failover', VM_NAME)).toBe('took over');
});

test('a command that cannot be run is refused at the start', async () => {
  const args = ['--vm', VM_NAME, '--qmp', '/nonexistent', '--listen', '127.0.0.1:0', '--insecure'];
  const missing = await colo('secondary', ...args, '--fence-command', path.join(folder, 'nothing'));
  expect(missing).toMatchObject({ code: 64 });
  expect(missing.stderr).toMatch(/--fence-command.*can't be run: ENOENT/);
  const relative = await colo('secondary', ...args, '--fence-command', 'fence');
  expect(relative.stderr).toMatch(/must be an absolute path/);
});
