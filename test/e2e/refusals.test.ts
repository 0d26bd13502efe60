/** What can't be protected, or isn't what it says it is, is refused with the reason: at once, and without harm to the VM. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { encodeMessage } from '../../src/protocol/codec.ts';
import { encodePreface } from '../../src/protocol/preface.ts';
import { vmIdOf } from '../../src/protocol/vm-id.ts';
import { QmpClient } from '../../src/qmp/client.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { TestNetwork } from '../../src/testbed/network.ts';
import type { TestVm } from '../../src/testbed/vm.ts';
import { waitFor } from '../../src/testbed/wait.ts';
import { colo } from './support/cli.ts';
import {
  type GuestOptions,
  moreCheckpoints,
  protect,
  startPrimary,
  startSecondary,
  startVm,
  VM_NAME,
  waitBooted,
} from './support/protection.ts';

const GUEST: GuestOptions = { guest: 'baremetal' };

let cleanup: Cleanup;
beforeEach(() => {
  cleanup = new Cleanup();
});
afterEach(() => cleanup.run());

async function expectRunning(vm: TestVm): Promise<void> {
  const monitor = await QmpClient.connect(vm.testQmpPath);
  expect(await monitor.execute('query-status')).toMatchObject({ running: true });
  monitor.close();
}

const PRIMARY = ['primary', '--vm', 'a', '--qmp', '/nonexistent/qmp', '--peer', '127.0.0.1:1', '--insecure'];
const SECONDARY = [
  'secondary',
  '--vm',
  'a',
  '--qmp',
  '/nonexistent/qmp',
  '--listen',
  '127.0.0.1:0',
  '--insecure',
];

describe('the command line', () => {
  test.each<[string, string[], number, RegExp]>([
    ['no command', [], 64, /Usage/],
    ['an unknown command', ['preserve'], 64, /unknown command/],
    ['an unknown option', [...PRIMARY, '--fast'], 64, /unknown option '--fast'/],
    ['no peer', PRIMARY.slice(0, 5), 64, /--peer/],
    ['no VM', ['primary', '--qmp', 'x', '--peer', 'h:1'], 64, /--vm/],
    ['a VM name with a slash', ['primary', '--vm', '../x', '--qmp', 'x', '--peer', 'h:1'], 64, /VM name/],
    ['a peer without a port', [...PRIMARY.slice(0, 6), 'host'], 64, /HOST:PORT/],
    ['a peer with a port out of range', [...PRIMARY.slice(0, 6), 'host:70000'], 64, /out of range/],
    ['an interval that is no number', [...PRIMARY, '--interval', 'often'], 64, /whole number/],
    ['an interval below the limit', [...PRIMARY, '--interval', '1'], 64, /from 5 to/],
    [
      'a minimum above the interval',
      [...PRIMARY, '--interval', '20', '--min-interval', '30'],
      64,
      /longer than --interval/,
    ],
    [
      'a minimum above the interval, for after a take-over',
      [...SECONDARY, '--peer', '127.0.0.1:1', '--interval', '20', '--min-interval', '30'],
      64,
      /longer than --interval/,
    ],
    ['a scrub of more than may be', [...PRIMARY, '--scrub', '1025'], 64, /from 0 to/],
    ['an unknown mode', [...PRIMARY, '--mode', 'fast'], 64, /pipelined, strict/],
    [
      'a comparing tracker without a shadow',
      [...PRIMARY, '--tracker', 'compare', '--no-shadow'],
      64,
      /--no-shadow/,
    ],
    [
      'a trace that cannot be made',
      [...PRIMARY, '--trace', '/nonexistent/trace'],
      69,
      /\/nonexistent\/trace/,
    ],
    [
      'a witness that is no URL',
      [...PRIMARY, '--witness', 'etcd1:2379'],
      64,
      /'etcd1:2379' is neither https/,
    ],
    ['a witness without a port', [...PRIMARY, '--witness', 'https://etcd1'], 64, /names no port/],
    [
      'a witness half with TLS',
      [...PRIMARY, '--witness', 'https://a:2379,http://b:2379'],
      64,
      /some URLs are https and some http/,
    ],
    ['a CA without a witness', [...SECONDARY, '--witness-ca', '/ca.pem'], 64, /--witness-ca is for an etcd/],
    [
      'a certificate without its key',
      [...PRIMARY, '--witness', 'https://a:2379', '--witness-cert', '/c.pem'],
      64,
      /belong together/,
    ],
    [
      'a CA that is not there',
      [...PRIMARY, '--witness', 'https://a:2379', '--witness-ca', '/nonexistent/ca'],
      78,
      /--witness-ca: .*\/nonexistent\/ca/,
    ],
    ['a node with a path in its name', [...PRIMARY, '--node', '../a'], 64, /a node name is 1-63/],
    ['trials without a witness', [...PRIMARY, '--witness', 'none'], 69, /--witness none: .*both VMs run/],
    ['plain text on a network', [...PRIMARY.slice(0, 6), '10.0.0.1:1', '--insecure'], 64, /loopback/],
    ['plain text on every address', [...SECONDARY.slice(0, 6), ':1', '--insecure'], 64, /loopback/],
    ['plain text after a take-over', [...SECONDARY, '--peer', '10.0.0.1:1'], 64, /loopback/],
    [
      'no certificate there',
      [...PRIMARY.slice(0, 7), '--tls', '/nonexistent/tls'],
      78,
      /\/nonexistent\/tls\/certificate\.pem.*colo-agent pair/,
    ],
    ['no QMP socket there', PRIMARY, 69, /\/nonexistent\/qmp/],
    ['no QMP socket there, secondary', SECONDARY, 69, /\/nonexistent\/qmp/],
    ['status without an agent', ['status', '--control', '/nonexistent/control'], 69, /no colo-agent answers/],
    [
      'failover without an agent',
      ['failover', '--control', '/nonexistent/control'],
      69,
      /no colo-agent answers/,
    ],
  ])('%s', async (_name, args, code, text) => {
    const ended = await colo(...args);
    expect(ended.stderr).toMatch(text);
    expect(ended.stderr).not.toMatch(/\n\s+at /);
    expect(ended.code).toBe(code);
  });

  test('--help and --version end well', async () => {
    expect(await colo('--help')).toMatchObject({ code: 0 });
    expect((await colo('--version')).stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
  });

  test('a QMP path that is a plain file', async () => {
    const folder = mkdtempSync(path.join(tmpdir(), 'colo-refusals-'));
    cleanup.add(() => rmSync(folder, { recursive: true }));
    const file = path.join(folder, 'file');
    writeFileSync(file, 'no socket');
    const ended = await colo('primary', '--vm', 'a', '--qmp', file, '--peer', '127.0.0.1:1', '--insecure');
    expect(ended.code).toBe(69);
    expect(ended.stderr).toContain(file);
  });
});

describe('a VM that cannot be protected', () => {
  test('with an exception for a disk that it does not have', async () => {
    const vm = await startVm(cleanup, 'no-disk', GUEST, false);
    await waitBooted(vm, GUEST);
    for (const option of ['--ungated-disk', '--shared-disk']) {
      const refused = await colo(
        ...['primary', '--vm', 'a', '--qmp', vm.qmpPath, '--peer', '127.0.0.1:1', '--insecure'],
        ...[option, 'vdz'],
      );
      expect(refused.code).toBe(78);
      expect(refused.stderr).toMatch(/disk vdz: the VM has none of this name/);
    }
    await expectRunning(vm);
  });

  test('a standby that runs', async () => {
    const vm = await startVm(cleanup, 'running', GUEST, false);
    await waitBooted(vm, GUEST);
    const refused = await colo(
      ...['secondary', '--vm', 'a', '--qmp', vm.qmpPath, '--listen', '127.0.0.1:0', '--insecure'],
    );
    expect(refused.code).toBe(78);
    expect(refused.stderr).toMatch(/-S/);
    await expectRunning(vm);
  });

  test('a port that is taken', async () => {
    const vm = await startVm(cleanup, 'one', GUEST, true);
    const other = await startVm(cleanup, 'two', GUEST, true);
    const { listen } = await startSecondary(cleanup, vm);
    const refused = await colo(
      'secondary',
      '--vm',
      'a',
      '--qmp',
      other.qmpPath,
      '--listen',
      listen,
      '--insecure',
      '--control',
      `${other.qmpPath}.ctl`,
    );
    expect(refused.code).toBe(69);
    expect(refused.stderr).toContain(listen);
  });
});

describe('two VMs that do not match are named at READY, before anything is stopped', () => {
  test.each<[string, Partial<GuestOptions>, RegExp]>([
    ['machine type', { machine: 'pc' }, /machine/i],
    ['memory', { memoryMiB: 96 }, /pc\.ram|RAM/],
    ['CPUs', { smp: 2 }, /CPU/i],
    ['CPU model', { extraArgs: ['-cpu', 'Westmere'] }, /CPU|model|feature/i],
    ['a device', { extraArgs: ['-device', 'virtio-rng-pci'] }, /PCI|device|rng/i],
  ])('%s', async (_name, difference, text) => {
    const primaryVm = await startVm(cleanup, 'primary', GUEST, false);
    await waitBooted(primaryVm, GUEST);
    const standbyVm = await startVm(cleanup, 'standby', { ...GUEST, ...difference }, true);
    const { listen } = await startSecondary(cleanup, standbyVm);
    const primary = await startPrimary(cleanup, primaryVm, listen);
    const { reason } = await primary.waitStatus('a difference', 30_000, (status) => text.test(status.reason));
    expect(reason).toMatch(text);
    expect(await primary.status()).toMatchObject({ state: 'EXPOSED', pauseMs: { last: null } });
    await expectRunning(primaryVm);
  });
});

describe('a peer that misbehaves', () => {
  const hello = { vmId: vmIdOf(VM_NAME), generation: 1, epoch: 0 };

  test.each<[string, Uint8Array[]]>([
    ['sends nothing of ours', [Buffer.from('GET / HTTP/1.1\r\n\r\n'.padEnd(200, 'x'))]],
    ['sends garbage behind the preface', [encodePreface({ link: 'control' }), Buffer.alloc(4096, 0xa5)]],
    [
      'begins in the middle',
      [encodePreface({ link: 'control' }), encodeMessage({ ...hello, epoch: 7, body: { type: 'new' } })],
    ],
    [
      'speaks for another VM',
      [
        encodePreface({ link: 'control' }),
        encodeMessage({ ...hello, vmId: '00'.repeat(16), body: { type: 'bye', reason: 'detach' } }),
      ],
    ],
    [
      'describes nonsense',
      [
        encodePreface({ link: 'control' }),
        encodeMessage({
          ...hello,
          body: {
            type: 'hello',
            description: { cpus: 'many' },
            mode: 'strict',
            connections: 1,
            lineage: '00'.repeat(16),
            node: 'north',
            arbitration: 'none',
          },
        }),
      ],
    ],
    [
      'sends bulk without a session',
      [encodePreface({ link: 'bulk', bulkToken: '00'.repeat(16), generation: 1, index: 0, connections: 1 })],
    ],
  ])('%s: the standby goes on', async (_name, chunks) => {
    const standbyVm = await startVm(cleanup, 'standby', GUEST, true);
    const { agent, listen } = await startSecondary(cleanup, standbyVm, ['--insecure']);
    const [host = '', port] = listen.split(':');
    const socket = connect({ host, port: Number(port) });
    cleanup.add(() => void socket.destroy());
    socket.on('error', () => {}); // being cut off is what is expected
    const closed = new Promise((resolve) => socket.on('close', resolve));
    socket.resume();
    for (const chunk of chunks) socket.write(chunk);
    await closed;
    // It still takes a primary.
    const primaryVm = await startVm(cleanup, 'primary', GUEST, false);
    await waitBooted(primaryVm, GUEST);
    const primary = await startPrimary(cleanup, primaryVm, listen, ['--insecure']);
    await moreCheckpoints(primary, 2);
    expect((await agent.status()).state).toBe('STANDBY');
  });

  test('a failover while the primary lives is refused; a second primary too', async () => {
    const { primary, secondary, listen } = await protect(cleanup, { guest: GUEST });
    await expect(secondary.command('failover')).rejects.toThrow(/primary/);
    const other = await startVm(cleanup, 'other', GUEST, false);
    await waitBooted(other, GUEST);
    const second = await startPrimary(cleanup, other, listen);
    await second.waitState('EXPOSED', 30_000);
    await moreCheckpoints(primary, 3);
    expect((await secondary.status()).state).toBe('STANDBY');
  });

  test('without a witness a person decides, who types the name', async () => {
    const { primaryVm, standbyVm, secondary } = await protect(cleanup, { guest: GUEST });
    primaryVm.kill();
    await secondary.waitStatus(
      'loss of the primary',
      30_000,
      ({ state, reason }) => state === 'STANDBY' && /lost/.test(reason),
    );
    const plain = await colo('failover', '--control', secondary.controlPath);
    expect(plain).toMatchObject({ code: 69, stderr: expect.stringContaining('--force NAME') });
    const other = await colo('failover', '--force', 'other', '--control', secondary.controlPath);
    expect(other).toMatchObject({ code: 69, stderr: expect.stringContaining("this agent's is e2e") });
    expect(await secondary.status()).toMatchObject({ state: 'STANDBY' });
    const ended = await colo('failover', '--force', VM_NAME, '--control', secondary.controlPath);
    expect(ended.code).toBe(0);
    expect(await secondary.status()).toMatchObject({ state: 'RUNNING' });
    const seen = standbyVm.console().length;
    await waitFor('letters of the guest', 30_000, () => standbyVm.console().length > seen + 4);
    expect(standbyVm.console()).not.toContain('!');
  });

  test('a guest with two NICs: both are gated', async () => {
    const network = cleanup.own(await TestNetwork.create());
    const { primary, primaryVm } = await protect(cleanup, { guest: { ...GUEST, network, nicCount: 2 } });
    expect(await primary.status()).toMatchObject({ ungated: [] });
    const monitor = await QmpClient.connect(primaryVm.testQmpPath);
    const objects = await monitor.execute('qom-list', { path: '/objects' });
    monitor.close();
    const filters = objects.filter(({ name }) => name.startsWith('colo-gate-'));
    expect(filters).toHaveLength(4); // one takes the frames of a NIC out, one takes them in
  });
});
