import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { FenceError, fence } from '../../src/agent/fence.ts';
import { Log } from '../../src/agent/log.ts';

const target = { vm: 'web', host: '10.0.0.1', generation: 7 };

let folder: string;
const lines: string[] = [];
const log = new Log(
  'debug',
  () => ({}),
  (line) => lines.push(line),
);
beforeEach(() => {
  lines.length = 0;
  folder = mkdtempSync(path.join(tmpdir(), 'colo-fence-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

function run(script: string, timeoutMs = 60_000, skipped?: AbortSignal): Promise<void> {
  const command = path.join(folder, 'fence');
  writeFileSync(command, `#!/bin/sh\n${script}\n`);
  chmodSync(command, 0o755);
  return fence({ command, timeoutMs, host: null }, target, log, skipped);
}

test('arguments and environment say whom to fence', async () => {
  const file = path.join(folder, 'called');
  await run(`echo "$@ $COLO_VM $COLO_HOST $COLO_GENERATION" > ${file}; echo done`);
  expect(readFileSync(file, 'utf8')).toBe('web 10.0.0.1 7 web 10.0.0.1 7\n');
  expect(lines.at(-1)).toContain('"output":"done"');
});

test.each([
  ['exit 3', 'exited with 3; it said nothing'],
  ['echo the switch is dark; exit 1', 'exited with 1; it said: the switch is dark'],
  ['kill -9 $$', 'was killed by SIGKILL'],
])('%s fences nobody', async (script, text) => {
  await expect(run(script)).rejects.toThrow(text);
  await expect(run(script)).rejects.toBeInstanceOf(FenceError);
});

test('a program that is not there fences nobody', async () => {
  const command = path.join(folder, 'nothing');
  await expect(fence({ command, timeoutMs: 1000, host: null }, target, log)).rejects.toThrow(
    'could not be run: spawn',
  );
});

test('one that takes too long is killed, with its children', async () => {
  const alive = path.join(folder, 'pid');
  await expect(run(`sleep 1000 & echo $! > ${alive}; wait`, 500)).rejects.toThrow(
    'has not come to an end within 0.5 s',
  );
  const pid = Number(readFileSync(alive, 'utf8'));
  await vi.waitFor(() => expect(isRunning(pid)).toBe(false), 10_000);
});

test('a child that it leaves behind does not hold the take-over up', async () => {
  const file = path.join(folder, 'pid');
  await run(`sleep 1000 & echo $! > ${file}`);
  process.kill(Number(readFileSync(file, 'utf8')), 'SIGKILL');
});

/** A zombie that nobody has waited for runs no more. */
function isRunning(pid: number): boolean {
  const stat = `/proc/${pid}/stat`;
  if (!existsSync(stat)) return false;
  return !/\) Z /.test(readFileSync(stat, 'utf8'));
}

test('one that a person stands in for is killed, with its children', async () => {
  const skipped = new AbortController();
  const began = path.join(folder, 'began');
  const fencing = run(
    `sleep 3600 & echo $! > ${began}.new; mv ${began}.new ${began}; wait`,
    60_000,
    skipped.signal,
  );
  const ended = expect(fencing).rejects.toThrow(/was given up/);
  await vi.waitFor(() => readFileSync(began), 20_000);
  skipped.abort();
  await ended;
  const child = Number(readFileSync(began, 'utf8'));
  await vi.waitFor(() => expect(() => process.kill(child, 0)).toThrow(), 20_000);
});
