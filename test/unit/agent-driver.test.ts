import { once } from 'node:events';
import { type AddressInfo, connect, createServer } from 'node:net';
import { describe, expect, test, vi } from 'vitest';
import { Driver, monotonicMs } from '../../src/agent/driver.ts';
import type { Machine } from '../../src/protocol/machine.ts';

interface TestEvent {
  type: string;
  nowMs: number;
}

class Recorder implements Machine<TestEvent, string> {
  readonly seen: string[] = [];
  nextTimepointMs: number | null = null;
  answers: Record<string, string[]> = {};

  step(event: TestEvent): string[] {
    this.seen.push(event.type);
    return this.answers[event.type] ?? [];
  }
}

describe('Driver', () => {
  test('events that an effect dispatches wait for the effects before them', () => {
    const machine = new Recorder();
    machine.answers = { first: ['a', 'b'], second: ['c'] };
    const performed: string[] = [];
    const driver = new Driver<TestEvent, string>(machine, (effect) => {
      performed.push(effect);
      if (effect === 'a') driver.dispatch({ type: 'second', nowMs: 0 });
    });
    driver.dispatch({ type: 'first', nowMs: 0 });
    expect(performed).toEqual(['a', 'b', 'c']);
    driver.stop();
  });

  test('ticks until the time that the machine asked for has come', async () => {
    const machine = new Recorder();
    const atMs = monotonicMs() + 30;
    machine.nextTimepointMs = atMs;
    const ticks: number[] = [];
    const driver = new Driver<TestEvent, string>(
      machine,
      () => {},
      (event) => {
        if (event.type !== 'tick') return;
        ticks.push(event.nowMs);
        // A timer of libuv's may fire up to a millisecond early: the machine then asks again.
        if (event.nowMs >= atMs) machine.nextTimepointMs = null;
      },
    );
    driver.dispatch({ type: 'start', nowMs: 0 });
    await vi.waitFor(() => expect(machine.nextTimepointMs).toBeNull());
    expect(ticks.at(-1)).toBeGreaterThanOrEqual(atMs);
    driver.stop();
  });

  test('a tick that comes late lets go first what lies in the sockets', async () => {
    const machine = new Recorder();
    const driver = new Driver<TestEvent, string>(machine, () => {});
    const server = createServer((socket) =>
      socket.on('data', () => driver.dispatch({ type: 'message', nowMs: 0 })),
    );
    const accepted = once(server, 'connection');
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const peer = connect((server.address() as AddressInfo).port, '127.0.0.1');
    await Promise.all([accepted, once(peer, 'connect')]);
    machine.nextTimepointMs = monotonicMs() + 20;
    driver.dispatch({ type: 'start', nowMs: 0 });
    peer.write('answer');
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 200); // the event loop stands still
    await vi.waitFor(() => expect(machine.seen).toContain('tick'));
    expect(machine.seen.slice(0, 3)).toEqual(['start', 'message', 'tick']);
    driver.stop();
    peer.destroy();
    server.close();
  });

  test('an event that stops the driver ends everything behind it', () => {
    const machine = new Recorder();
    machine.answers = { first: ['stop'] };
    const driver = new Driver<TestEvent, string>(machine, () => {
      driver.dispatch({ type: 'late', nowMs: 0 });
      driver.stop();
    });
    driver.dispatch({ type: 'first', nowMs: 0 });
    driver.dispatch({ type: 'later', nowMs: 0 });
    expect(machine.seen).toEqual(['first']);
  });
});
