/** The secondary's shell, with a standby VM whose answers come when the test says so. */
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, expect, test, vi } from 'vitest';
import { Log } from '../../src/agent/log.ts';
import { SecondaryAgent } from '../../src/agent/secondary-agent.ts';
import { attachStandby } from '../../src/agent/standby-attach.ts';
import type { StandbyVm } from '../../src/agent/standby-vm.ts';
import {
  type Acceptor,
  type AcceptorOptions,
  native,
  type PeerConnection,
} from '../../src/native/binding.ts';
import { encodeMessage } from '../../src/protocol/codec.ts';
import { DEFAULT_TIMINGS, type SecondaryEffect } from '../../src/protocol/machine.ts';
import { encodePreface } from '../../src/protocol/preface.ts';
import { vmIdOf } from '../../src/protocol/vm-id.ts';

vi.mock('../../src/agent/standby-attach.ts', () => ({ attachStandby: vi.fn() }));

const VM = 'web1';
const GENERATION = 3;
const PATIENCE = { timeout: 60_000, interval: 10 };

const cleanups: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

class StandbyInHand {
  readonly pid = process.pid;
  readonly asked: SecondaryEffect['type'][] = [];
  answer: Parameters<StandbyVm['listen']>[0] = () => {};

  listen(onEvent: Parameters<StandbyVm['listen']>[0]): void {
    this.answer = onEvent;
  }

  perform({ type }: SecondaryEffect): void {
    this.asked.push(type);
  }

  async detach(): Promise<void> {}

  async waitAsked(type: SecondaryEffect['type'], times: number): Promise<void> {
    const count = () => this.asked.filter((asked) => asked === type).length;
    await vi.waitFor(() => expect(count()).toBe(times), PATIENCE);
  }
}

interface Secondary {
  vm: StandbyInHand;
  port: number;
  log: string[];
}

async function start(): Promise<Secondary> {
  const vm = new StandbyInHand();
  vi.mocked(attachStandby).mockResolvedValue(vm as unknown as StandbyVm);
  const stateFolder = mkdtempSync(path.join(tmpdir(), 'colo-secondary-'));
  cleanups.push(() => rmSync(stateFolder, { recursive: true }));
  const log: string[] = [];
  const agent = await SecondaryAgent.attach({
    vm: VM,
    qmpPath: '',
    listen: { host: '127.0.0.1', port: 0 },
    credentials: null,
    witness: { kind: 'none' },
    node: 'south',
    stateFolder,
    overwriteDisks: [],
    succeed: null,
    fence: null,
    timings: DEFAULT_TIMINGS,
    traceFile: null,
    log: new Log(
      'info',
      () => ({}),
      (line) => log.push(line),
    ),
  });
  const ended = agent.run();
  cleanups.push(async () => {
    agent.stop();
    await ended;
  });
  return { vm, port: agent.port, log };
}

/** A connection, and what has come on it. */
function open(port: number, ...sent: Uint8Array[]): { socket: Socket; received: Buffer[] } {
  const socket = connect(port, '127.0.0.1');
  cleanups.push(() => socket.destroy());
  const received: Buffer[] = [];
  socket.on('data', (chunk) => received.push(chunk));
  socket.on('error', () => {});
  for (const bytes of sent) socket.write(bytes);
  return { socket, received };
}

/** A primary, up to where the standby is to open its session. */
async function connectPrimary({ vm, port }: Secondary, session: number) {
  const hello = encodeMessage({
    vmId: vmIdOf(VM),
    generation: GENERATION,
    epoch: 0,
    body: {
      type: 'hello',
      description: {},
      mode: 'pipelined',
      connections: 1,
      lineage: 'a'.repeat(32),
      node: 'north',
      arbitration: 'none',
    },
  });
  const primary = open(port, encodePreface({ link: 'control' }), hello);
  await vm.waitAsked('compare', session);
  vm.answer({ type: 'compared', difference: null });
  await vm.waitAsked('open-session', session);
  return primary;
}

function openHeartbeats(port: number, bulkToken: string) {
  return open(port, encodePreface({ link: 'heartbeat', bulkToken, generation: GENERATION }));
}

test('a session that has ended while it was being opened waits for no heartbeats', async () => {
  const secondary = await start();
  const { vm, port, log } = secondary;
  const [first, second] = ['1'.repeat(32), '2'.repeat(32)];

  const { socket } = await connectPrimary(secondary, 1);
  socket.destroy();
  await vi.waitFor(() => expect(log.join()).toContain('primary lost'), PATIENCE);
  vm.answer({ type: 'session-opened', bulkToken: first, lineages: [] });
  openHeartbeats(port, first);
  await vi.waitFor(
    () => expect(log.join()).toContain('there is no session that it could belong to'),
    PATIENCE,
  );

  const { received } = await connectPrimary(secondary, 2);
  vm.answer({ type: 'session-opened', bulkToken: second, lineages: [] });
  await vi.waitFor(() => expect(Buffer.concat(received).toString()).toContain(second), PATIENCE);
  const heartbeats = openHeartbeats(port, second);
  await vi.waitFor(() => expect(Buffer.concat(heartbeats.received).toString()).toContain('CHBT'), PATIENCE);
});

test('neither does one whose READY finds another primary connected', async () => {
  const secondary = await start();
  const { vm, port, log } = secondary;
  const { socket } = await connectPrimary(secondary, 1);
  socket.destroy();
  await vi.waitFor(() => expect(log.join()).toContain('primary lost'), PATIENCE);
  open(port, encodePreface({ link: 'control' }));
  await vi.waitFor(() => expect(log.join('').split('a primary connected')).toHaveLength(3), PATIENCE);
  vm.answer({ type: 'session-opened', bulkToken: '1'.repeat(32), lineages: [] });
  openHeartbeats(port, '1'.repeat(32));
  await vi.waitFor(
    () => expect(log.join()).toContain('there is no session that it could belong to'),
    PATIENCE,
  );
});

test('an address that is no option’s text is a primary’s, too', async () => {
  withConnections((connection) => ({ connection, peer: '[fe80::1%br-colo]:40000' }));
  const secondary = await start();
  await connectPrimary(secondary, 1);
  expect(secondary.log.join()).toContain('fe80::1%br-colo');
});

test('a primary whose connection cannot be used is refused, and the next one is not', async () => {
  let descriptors = false;
  withConnections((connection, peer) => {
    if (!descriptors) Object.defineProperty(connection, 'openSocket', { value: outOfDescriptors });
    return { connection, peer };
  });
  const secondary = await start();
  const { socket } = open(secondary.port, encodePreface({ link: 'control' }));
  await vi.waitFor(() => expect(socket.closed).toBe(true), PATIENCE);
  expect(secondary.log.join()).toMatch(/a primary was refused.*Too many open files/);
  descriptors = true;
  await connectPrimary(secondary, 1);
});

function outOfDescriptors(): never {
  throw new Error('Too many open files');
}

/** What the acceptor accepts is given to the agent as `change` says. */
function withConnections(
  change: (connection: PeerConnection, peer: string) => { connection: PeerConnection; peer: string },
): void {
  const Real = native.Acceptor;
  const given = vi.spyOn(native, 'Acceptor').mockImplementation(
    class {
      constructor(options: AcceptorOptions) {
        const onAccepted: AcceptorOptions['onAccepted'] = (link, accepted, preface, from) => {
          const { connection, peer } = change(accepted, from);
          options.onAccepted(link, connection, preface, peer);
        };
        // biome-ignore lint/correctness/noConstructorReturn: the real one, with another callback
        return new Real({ ...options, onAccepted }) as Acceptor;
      }
    } as typeof Real,
  );
  cleanups.push(() => given.mockRestore());
}
