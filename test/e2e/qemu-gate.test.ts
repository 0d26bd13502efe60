/** The output gate under a real QEMU's NIC. The guest is the firmware's network boot, which asks for an address again and again. */
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { native, type OutputGate } from '../../src/native/binding.ts';
import type { QmpClient } from '../../src/qmp/client.ts';
import { findLeftovers, handOver, install, removeLeftovers } from '../../src/vm/gate-wiring.ts';
import { findNics } from '../../src/vm/nics.ts';
import { QemuProcess } from './qemu-process.ts';

const TIMEOUT_MS = 60_000;
const cleanups: (() => unknown)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

/** What arrives at the far end of `-netdev stream`: be32 length, frame. */
class Wire {
  frames = 0;
  readonly #server: Server;

  static async listen(file: string): Promise<Wire> {
    const wire = new Wire();
    wire.#server.listen(file);
    await once(wire.#server, 'listening');
    return wire;
  }

  private constructor() {
    this.#server = createServer((socket) => {
      let bytes = Buffer.alloc(0);
      socket.on('data', (chunk) => {
        bytes = Buffer.concat([bytes, chunk]);
        while (bytes.length >= 4 && bytes.length >= 4 + bytes.readUInt32BE(0)) {
          bytes = bytes.subarray(4 + bytes.readUInt32BE(0));
          this.frames += 1;
        }
      });
      socket.on('error', () => {}); // QEMU is killed at the end of every test
    });
  }

  close(): void {
    this.#server.close();
  }

  /** Waits for a frame that arrives from now on. */
  async next(): Promise<void> {
    const before = this.frames;
    await vi.waitFor(() => expect(this.frames).toBeGreaterThan(before), TIMEOUT_MS);
  }
}

async function bootFromNetwork(): Promise<{ qemu: QemuProcess; qmp: QmpClient; wire: Wire }> {
  const folder = mkdtempSync(path.join(tmpdir(), 'colo-wire-'));
  cleanups.push(() => rmSync(folder, { recursive: true }));
  const wire = await Wire.listen(path.join(folder, 'wire'));
  cleanups.push(() => wire.close());
  const netdev = `stream,id=n0,server=off,addr.type=unix,addr.path=${folder}/wire`;
  const boot = ['-boot', 'order=n,reboot-timeout=1'];
  const qemu = await QemuProcess.start(
    '-m',
    '64',
    ...boot,
    '-netdev',
    netdev,
    '-device',
    'virtio-net-pci,netdev=n0,id=net0',
  );
  cleanups.push(() => qemu.stop());
  const qmp = await qemu.connect();
  cleanups.push(() => qmp.close());
  return { qemu, qmp, wire };
}

function makeGate(broken: string[] = []): OutputGate {
  const gate = new native.OutputGate({
    limitBytes: 1 << 20,
    pressureBytes: 1 << 19,
    onOutputHeld: () => {},
    onPressure: () => {},
    onBroken: (reason) => broken.push(reason),
  });
  cleanups.push(() => gate.close());
  return gate;
}

describe('the output gate', () => {
  it('goes under a running guest, passes its frames, and comes off without a trace', {
    timeout: 2 * TIMEOUT_MS,
  }, async () => {
    const { qemu, qmp, wire } = await bootFromNetwork();
    await wire.next();
    const broken: string[] = [];
    const gate = makeGate(broken);
    const wiring = await install(qmp, await findNics(qmp, qemu.pid), gate);
    expect(await findLeftovers(qmp)).toMatchObject({
      gate: true,
      filters: [expect.any(String), expect.any(String)],
    });
    await wire.next();
    expect(gate.stats().releasedFrames).toBeGreaterThan(0);
    await handOver(qmp, wiring, gate, () => qmp.execute('stop'));
    await qmp.execute('cont');
    expect(await findLeftovers(qmp)).toEqual({ gate: false, filters: [], chardevs: [] });
    const throughGate = gate.stats().releasedFrames;
    await wire.next();
    expect(gate.stats().releasedFrames).toBe(throughGate);

    // And once more under the same NIC: QEMU must take new names at once.
    const again = await install(qmp, await findNics(qmp, qemu.pid), makeGate(broken));
    await handOver(qmp, again, makeGate(broken));
    await wire.next();
    expect(qemu.stderr()).toBe('');
  });

  it('of an agent that died is found by the next, and the guest gets its network back', {
    timeout: 2 * TIMEOUT_MS,
  }, async () => {
    const { qemu, qmp, wire } = await bootFromNetwork();
    const gate = makeGate();
    await install(qmp, await findNics(qmp, qemu.pid), gate);
    await wire.next();
    gate.close();
    qmp.close();
    const next = await qemu.connect();
    cleanups.push(() => next.close());
    expect((await findLeftovers(next)).gate).toBe(true);
    const beforeRemoval = wire.frames;
    // INVARIANT 1: it failed closed. The firmware asks again, QEMU complains about each frame that it can't get rid of, and none gets out.
    await next.execute('human-monitor-command', { 'command-line': 'system_reset' });
    await vi.waitFor(() => expect(qemu.stderr()).toMatch(/send failed/), TIMEOUT_MS);
    expect(wire.frames).toBe(beforeRemoval);
    await removeLeftovers(next);
    expect(await findLeftovers(next)).toEqual({ gate: false, filters: [], chardevs: [] });
    await wire.next();
  });

  it('that can not go under every NIC goes under none', async () => {
    const { qemu, qmp } = await bootFromNetwork();
    const [nic] = await findNics(qmp, qemu.pid);
    if (!nic) throw new Error('no NIC found');
    const gone = { ...nic, netdev: { id: 'nothing', type: 'tap', queues: 1 } };
    await expect(install(qmp, [nic, gone], makeGate())).rejects.toThrow(/object-add/);
    expect(await findLeftovers(qmp)).toEqual({ gate: false, filters: [], chardevs: [] });
  });
});
