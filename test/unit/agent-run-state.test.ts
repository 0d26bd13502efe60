import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { RunState } from '../../src/agent/run-state.ts';
import { QmpClient } from '../../src/qmp/client.ts';
import { event, ok, QmpServer, type Request } from './qmp-server.ts';

let server: QmpServer;
let qmp: QmpClient;
let seen: string[];
/** Whether the guard would resume the VM, if this process died now. */
let guarded: boolean;
let runState: RunState;
/** What QEMU writes for a command. */
let answers: Record<string, (request: Request) => string>;

beforeEach(async () => {
  answers = {
    stop: (request) => event('STOP', {}) + ok(request),
    cont: (request) => event('RESUME', {}) + ok(request),
  };
  server = await QmpServer.start((request) => answers[request.execute]?.(request) ?? ok(request));
  qmp = await QmpClient.connect(server.path);
  seen = [];
  const guard = {
    setStopped: (stopped: boolean) => {
      guarded = stopped;
    },
  };
  runState = new RunState(qmp, guard, () => seen.push('resumed'));
  runState.listen({
    onPaused: () => seen.push('paused by others'),
    onResumed: () => seen.push('resumed by others'),
    onPauseEnded: () => seen.push('pause ended'),
  });
});

afterEach(async () => {
  qmp.close();
  await server.stop();
});

/** As a checkpoint does: `cont` is issued before the save has its answer. */
async function pause(): Promise<void> {
  const stopping = runState.stop();
  const saving = qmp.execute('xen-save-devices-state', { filename: '/dev/fdset/1', live: false });
  runState.expectSave(saving);
  expect(await stopping).toBe(true);
  await Promise.all([runState.resume(), saving]);
}

describe('a RESUME while our cont is on its way', () => {
  test('behind the save is our own', async () => {
    await pause();
    expect(seen).toEqual(['pause ended', 'resumed']);
    expect(runState.stoppedByUs).toBe(false);
  });

  test("before the save's answer is somebody else's", async () => {
    answers['xen-save-devices-state'] = (request) => event('RESUME', {}) + ok(request);
    answers['cont'] = (request) => ok(request);
    await pause();
    expect(seen).toContain('resumed by others');
    expect(seen).not.toContain('pause ended');
  });
});

describe('a VM that is handed over', () => {
  test('is resumed by nobody but us, and by us when we say so', async () => {
    expect(await runState.stop()).toBe(true);
    expect(guarded).toBe(true);
    await runState.resume();
    expect(await runState.standStill()).toBe(true);
    expect([runState.stoppedByUs, guarded]).toEqual([true, false]);
    await runState.resume();
    expect(seen).toEqual(['pause ended', 'resumed', 'pause ended', 'resumed']);
  });

  test('stands for good once it is left, though somebody has resumed it before', async () => {
    await runState.standStill();
    server.send(event('RESUME', {}));
    await qmp.execute('query-status');
    expect(seen).toEqual(['resumed by others']);
    await runState.leave();
    expect(guarded).toBe(false);
    let done = false;
    await runState.whileStopped(async () => {
      done = true;
    });
    expect([done, await runState.resume()]).toEqual([true, null]);
    expect(seen).toEqual(['resumed by others']);
  });
});

describe('while the VM is stopped for something else', () => {
  test('it is resumed, also when that fails', async () => {
    await expect(
      runState.whileStopped(() => {
        expect(runState.stoppedByUs).toBe(true);
        return Promise.reject(new Error('no'));
      }),
    ).rejects.toThrow('no');
    expect(seen).toEqual(['pause ended', 'resumed']);
  });

  test('it is left as it is when somebody else had stopped it', async () => {
    answers['stop'] = (request) => ok(request);
    await runState.whileStopped(async () => expect(runState.stoppedByUs).toBe(false));
    expect(seen).toEqual([]);
  });

  test('a checkpoint’s pause is not ended by it', async () => {
    await runState.stop();
    await expect(runState.whileStopped(async () => {})).rejects.toThrow(/stands for a checkpoint/);
    expect(runState.stoppedByUs).toBe(true);
  });
});
