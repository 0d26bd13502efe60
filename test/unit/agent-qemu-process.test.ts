/** A QEMU that is to end, and doesn't as it should; any process will do, since all that is asked of it is its end. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { Log } from '../../src/agent/log.ts';
import { QemuProcess } from '../../src/agent/qemu-process.ts';
import { SerialQueue } from '../../src/agent/serial-queue.ts';
import type { QmpClient } from '../../src/qmp/client.ts';

let child: ChildProcess;
let lines: string[];
let watched: QemuProcess | null;

beforeEach(async () => {
  child = spawn('sleep', ['600']);
  await once(child, 'spawn');
  lines = [];
  watched = null;
});

afterEach(() => {
  watched?.close();
  child.kill('SIGKILL');
});

/** `execute`: what its QMP does with every command. */
function watch(execute: () => Promise<never>): QemuProcess {
  const qmp = { peer: { pid: child.pid }, execute } as unknown as QmpClient;
  const log = new Log(
    'info',
    () => ({}),
    (line) => lines.push(line),
  );
  watched = new QemuProcess(qmp, log, (reason) => lines.push(reason));
  return watched;
}

test('it is killed in time, though what is before its turn never ends', async () => {
  const ended = once(child, 'exit');
  const queue = new SerialQueue();
  void queue.run(() => ended); // a command that hangs fails with the connection, when QEMU ends
  await watch(() => Promise.reject(new Error('the connection ended'))).quit(queue);
  expect(await ended).toEqual([null, 'SIGKILL']);
});

test('it is killed in time when it answers nothing', async () => {
  const ended = once(child, 'exit');
  const hanging = async (): Promise<never> => {
    await ended;
    throw new Error('the connection ended');
  };
  await watch(hanging).quit(new SerialQueue());
  expect(await ended).toEqual([null, 'SIGKILL']);
});

test('one that has ended already needs no killing', async () => {
  const gone = async (): Promise<never> => {
    const ended = once(child, 'exit');
    child.kill('SIGTERM');
    await ended; // and waited for, so that there is nothing left to send a signal to
    throw new Error('the connection ended');
  };
  await watch(gone).quit(new SerialQueue());
  expect(lines).toEqual([expect.stringContaining('did not obey quit')]);
});
