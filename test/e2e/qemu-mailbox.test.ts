/** Device states out of one real QEMU and into another. */
import { execFileSync } from 'node:child_process';
import {
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import type { QmpClient } from '../../src/qmp/client.ts';
import { Mailbox } from '../../src/vm/mailbox.ts';
import { VmstateFile } from '../../src/vm/vmstate.ts';
import { parseSections } from '../../src/vm/vmstate-sections.ts';
import { QemuProcess } from './qemu-process.ts';

const cleanups: (() => unknown)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

const ARGS = ['-M', 'q35', '-m', '64', '-vga', 'std', '-nic', 'user,model=virtio-net-pci'];

async function start(...args: string[]): Promise<{ qemu: QemuProcess; qmp: QmpClient }> {
  const qemu = await QemuProcess.start(...args);
  cleanups.push(() => qemu.stop());
  const qmp = await qemu.connect();
  cleanups.push(() => qmp.close());
  return { qemu, qmp };
}

const contentOf = (file: { fd: number }) => readFileSync(`/proc/self/fd/${file.fd}`);

async function machineOf(qmp: QmpClient): Promise<string> {
  return String(await qmp.execute('qom-get', { path: '/machine', property: 'type' })).replace('-machine', '');
}

/** What the native engine makes of a saved state: with a configuration section, and an empty description of itself at the end. */
function deliver(mailbox: Mailbox, saved: Buffer, machine: string): void {
  const configuration = Buffer.alloc(5);
  configuration[0] = 7;
  configuration.writeUInt32BE(machine.length, 1);
  const state = Buffer.concat([
    saved.subarray(0, 8),
    configuration,
    Buffer.from(machine),
    saved.subarray(8),
    Buffer.from([6, 0, 0, 0, 0]),
  ]);
  writeSync(mailbox.fd, state, 0, state.length, mailbox.stateOffset);
}

describe('VmstateFile', () => {
  it('holds just the last of several saves', async () => {
    const { qmp } = await start('-S', ...ARGS);
    const file = await VmstateFile.attach(qmp);
    await file.save(qmp);
    const first = parseSections(contentOf(file));
    expect(first.map(({ name }) => name)).toContain('apic');
    const sizes = new Set<number>();
    for (let count = 0; count < 5; count += 1) {
      await Promise.all([qmp.execute('stop'), file.save(qmp)]);
      sizes.add(contentOf(file).length);
      expect(parseSections(contentOf(file))).toEqual(first);
    }
    expect(sizes.size).toBe(1);
    await file.detach(qmp);
  });

  it('takes the place of the one that an agent left when it died', async () => {
    const { qemu, qmp } = await start(...ARGS);
    await VmstateFile.attach(qmp);
    qmp.close();
    const next = await qemu.connect();
    cleanups.push(() => next.close());
    const file = await VmstateFile.attach(next);
    await file.save(next);
    expect(await next.execute('query-fdsets')).toHaveLength(1);
    await file.detach(next);
    expect(await next.execute('query-fdsets')).toEqual([]);
  });
});

describe('Mailbox', () => {
  it('is an image that qemu-img finds nothing wrong with', async () => {
    const { qmp } = await start('-S', ...ARGS);
    const mailbox = await Mailbox.attach(qmp);
    const folder = mkdtempSync(path.join(tmpdir(), 'colo-mailbox-'));
    cleanups.push(() => rmSync(folder, { recursive: true }));
    const copy = path.join(folder, 'mailbox.qcow2');
    execFileSync('cp', ['--sparse=always', `/proc/${process.pid}/fd/${mailbox.fd}`, copy]);
    expect(execFileSync('qemu-img', ['check', copy], { encoding: 'utf8' })).toContain('No errors were found');
    const { snapshots } = JSON.parse(
      execFileSync('qemu-img', ['info', '--output=json', copy], { encoding: 'utf8' }),
    );
    expect(snapshots).toMatchObject([{ name: 'colo', 'vm-state-size': mailbox.stateBytes }]);
  });

  it('loads one state after the other, into a VM that stands and one that runs', {
    timeout: 60_000,
  }, async () => {
    const [from, to] = [await start('-S', ...ARGS), await start('-S', ...ARGS)];
    const file = await VmstateFile.attach(from.qmp);
    const mailbox = await Mailbox.attach(to.qmp);
    await file.save(from.qmp);
    const machine = await machineOf(from.qmp);
    for (let count = 0; count < 3; count += 1) {
      deliver(mailbox, contentOf(file), machine);
      await mailbox.load(to.qmp);
    }
    await to.qmp.execute('cont');
    await mailbox.load(to.qmp);
    expect(await to.qmp.execute('query-status')).toMatchObject({ running: true });
    expect(await to.qmp.execute('query-jobs')).toEqual([]);
    await mailbox.detach(to.qmp);
    expect(await to.qmp.execute('query-named-block-nodes', { flat: true })).toEqual([]);
    expect(await to.qmp.execute('query-fdsets')).toEqual([]);
    expect(to.qemu.stderr()).toBe('');
  });

  it('tells a state that QEMU refuses, and loads a good one afterwards', { timeout: 60_000 }, async () => {
    const [from, to] = [await start('-S', ...ARGS), await start('-S', ...ARGS)];
    const file = await VmstateFile.attach(from.qmp);
    const mailbox = await Mailbox.attach(to.qmp);
    await file.save(from.qmp);
    await expect(mailbox.load(to.qmp)).rejects.toMatchObject({ name: 'LoadError' });
    deliver(mailbox, contentOf(file), 'pc-q35-0.0');
    await expect(mailbox.load(to.qmp)).rejects.toThrow(/could not load the device state/);
    deliver(mailbox, contentOf(file), await machineOf(from.qmp));
    await mailbox.load(to.qmp);
    expect(await to.qmp.execute('query-jobs')).toEqual([]);
  });

  it('takes the place of the one that an agent left when it died', async () => {
    const { qemu, qmp } = await start('-S', ...ARGS);
    const left = await Mailbox.attach(qmp);
    await expect(left.load(qmp)).rejects.toMatchObject({ name: 'LoadError' });
    qmp.close();
    const next = await qemu.connect();
    cleanups.push(() => next.close());
    const mailbox = await Mailbox.attach(next);
    const nodes = await next.execute('query-named-block-nodes', { flat: true });
    expect(nodes.filter((node) => node['node-name']?.startsWith('colo-'))).toHaveLength(1);
    await mailbox.detach(next);
  });

  it('leaves a standby that agents come to and leave no more descriptors each time', async () => {
    const { qemu, qmp } = await start('-S', ...ARGS);
    const counts: number[] = [];
    for (let agents = 0; agents < 4; agents += 1) {
      const vmstate = await VmstateFile.attachToStanding(qmp);
      await vmstate.save(qmp);
      expect(parseSections(contentOf(vmstate)).map(({ name }) => name)).toContain('apic');
      await vmstate.detach(qmp);
      const mailbox = await Mailbox.attach(qmp);
      await expect(mailbox.load(qmp)).rejects.toMatchObject({ name: 'LoadError' });
      await mailbox.detach(qmp);
      counts.push(readdirSync(`/proc/${qemu.child.pid}/fd`).length);
    }
    expect(new Set(counts).size).toBe(1);
    // What QEMU before 9.1 keeps of the mailbox holds no memory.
    for (const { fds } of await qmp.execute('query-fdsets')) {
      for (const { fd, opaque } of fds)
        if (opaque === 'colo-mailbox') expect(statSync(`/proc/${qemu.child.pid}/fd/${fd}`).size).toBe(0);
    }
    await qmp.execute('cont');
    await (await VmstateFile.attach(qmp)).detach(qmp);
    await (await Mailbox.attach(qmp)).detach(qmp);
    expect(await qmp.execute('query-fdsets')).toEqual([]);
  });

  it('never writes to a file that QEMU calls a mailbox and may only read', async () => {
    const { qmp } = await start('-S', ...ARGS);
    const folder = mkdtempSync(path.join(tmpdir(), 'colo-mailbox-'));
    cleanups.push(() => rmSync(folder, { recursive: true }));
    const foreign = path.join(folder, 'foreign');
    writeFileSync(foreign, "somebody else's");
    const fd = openSync(foreign, 'r');
    cleanups.push(() => closeSync(fd));
    await qmp.execute('add-fd', { opaque: 'colo-mailbox' }, [fd]);
    const mailbox = await Mailbox.attach(qmp);
    await mailbox.detach(qmp);
    expect(readFileSync(foreign, 'utf8')).toBe("somebody else's");
  });

  it('says when QEMU dies during a load', async () => {
    const { qemu, qmp } = await start('-S', ...ARGS);
    const mailbox = await Mailbox.attach(qmp);
    qemu.child.kill('SIGSTOP'); // so that the load can't be over before QEMU is
    const refused = expect(mailbox.load(qmp)).rejects.toMatchObject({
      class: 'ConnectionLost',
      command: 'snapshot-load',
    });
    await qemu.stop();
    await refused;
  });
});
