/** What src/vm finds out about real QEMU processes. No guest but the firmware runs in them. */
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, describe, expect, it, vi } from 'vitest';
import type { QmpClient } from '../../src/qmp/client.ts';
import { QmpSchema } from '../../src/qmp/schema.ts';
import { compare, compareDescriptions } from '../../src/vm/compatibility.ts';
import { describeVm, type VmDescription } from '../../src/vm/description.ts';
import {
  type AcceptedExceptions,
  assertProtectable,
  assertUsableAsStandby,
  type PreflightError,
} from '../../src/vm/preflight.ts';
import { findRamBlocks, type RamBlock } from '../../src/vm/ram-blocks.ts';
import { VmstateFile } from '../../src/vm/vmstate.ts';
import { QemuProcess } from './qemu-process.ts';

const cleanups: (() => unknown)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

interface Vm {
  qemu: QemuProcess;
  qmp: QmpClient;
}

async function start(...args: string[]): Promise<Vm> {
  const qemu = await QemuProcess.start(...args);
  cleanups.push(() => qemu.stop());
  const qmp = await qemu.connect();
  cleanups.push(() => qmp.close());
  return { qemu, qmp };
}

const hmp = (qmp: QmpClient, line: string) => qmp.execute('human-monitor-command', { 'command-line': line });

/** The BIOS has mapped the display's memory: it is far enough to have moved everything that firmware moves. */
async function firmwareRan({ qmp }: Vm): Promise<void> {
  await vi.waitFor(async () => expect(await hmp(qmp, 'info mtree -f')).toMatch(/ram\): vga\.vram/), 60_000);
}

function poke(pid: number, address: bigint, value: number): void {
  const fd = openSync(`/proc/${pid}/mem`, 'r+');
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  writeSync(fd, bytes, 0, 4, Number(address));
  closeSync(fd);
}

async function peekGuest(qmp: QmpClient, guestAddress: number): Promise<number> {
  const [, word] = /: (0x[0-9a-f]{8})/.exec(await hmp(qmp, `xp /1wx ${guestAddress}`)) ?? [];
  return Number(word);
}

const sizes = (blocks: RamBlock[]) =>
  Object.fromEntries(blocks.map(({ name, sizeBytes }) => [name, sizeBytes]));
const addressOf = (blocks: RamBlock[], name: string) =>
  blocks.find((block) => block.name === name)?.hostAddress ?? 0n;

/** A QMP client whose `info ramblock` is that of QEMU 7.2: neither addresses nor access. */
function withoutAddresses(qmp: QmpClient): QmpClient {
  const execute = async (name: string, args: { 'command-line'?: string }) => {
    const reply = await qmp.execute(name as 'human-monitor-command', args as { 'command-line': string });
    return args['command-line'] === 'info ramblock'
      ? reply.replaceAll(/ 0x[0-9a-f]{16} {2}r[wo]| {2,}HVA {2}RO/g, '')
      : reply;
  };
  return { execute } as unknown as QmpClient;
}

const MIB = 1 << 20;

describe.each(['pc', 'q35'])('RAM blocks of %s', (machine) => {
  it('are found before the firmware ran and after, at the same addresses', { timeout: 120_000 }, async () => {
    const vm = await start('-S', '-M', machine, '-m', '128', '-vga', 'std', '-device', 'virtio-net-pci');
    const fresh = await findRamBlocks(vm.qmp, vm.qemu.pid);
    expect(Object.values(sizes(fresh))).toEqual([128 * MIB, 16 * MIB]);
    expect(fresh.map(({ name }) => name)).toEqual(['pc.ram', expect.stringMatching(/\/vga\.vram$/)]);
    poke(vm.qemu.pid, addressOf(fresh, 'pc.ram') + 0x500000n, 0xc0104a11);
    expect(await peekGuest(vm.qmp, 0x500000)).toBe(0xc0104a11);
    expect(await findRamBlocks(withoutAddresses(vm.qmp), vm.qemu.pid)).toEqual(fresh);
    await vm.qmp.execute('cont');
    await firmwareRan(vm);
    expect(await findRamBlocks(vm.qmp, vm.qemu.pid)).toEqual(fresh);
    expect(await findRamBlocks(withoutAddresses(vm.qmp), vm.qemu.pid)).toEqual(fresh);
  });
});

describe('RAM blocks', () => {
  it('of NUMA nodes, DIMMs and firmware flash are found, those of unused backends left out', async () => {
    const folder = mkdtempSync(path.join(tmpdir(), 'colo-flash-'));
    cleanups.push(() => rmSync(folder, { recursive: true }));
    const flash = ['code', 'vars'].map((name) => path.join(folder, name));
    for (const file of flash) writeFileSync(file, Buffer.alloc(256 * 1024));
    const vm = await start(
      ...['-S', '-M', 'q35', '-m', '64,slots=2,maxmem=1G', '-smp', '2'],
      ...[
        '-object',
        'memory-backend-memfd,id=m0,size=32M,share=on',
        '-object',
        'memory-backend-ram,id=m1,size=32M',
      ],
      ...['-numa', 'node,memdev=m0,cpus=0', '-numa', 'node,memdev=m1,cpus=1'],
      ...['-object', 'memory-backend-memfd,id=m2,size=16M', '-device', 'pc-dimm,memdev=m2'],
      ...['-object', 'memory-backend-ram,id=unused,size=8M'],
      ...['-drive', `if=pflash,format=raw,readonly=on,file=${flash[0]}`],
      ...['-drive', `if=pflash,format=raw,file=${flash[1]}`],
    );
    const blocks = await findRamBlocks(vm.qmp, vm.qemu.pid);
    const flashes = { 'system.flash0': 256 * 1024, 'system.flash1': 256 * 1024 };
    expect(sizes(blocks)).toEqual({ m0: 32 * MIB, m1: 32 * MIB, m2: 16 * MIB, ...flashes });
    expect(await findRamBlocks(withoutAddresses(vm.qmp), vm.qemu.pid)).toEqual(blocks);
    poke(vm.qemu.pid, addressOf(blocks, 'm1'), 0xc0104a11);
    expect(await peekGuest(vm.qmp, 32 * MIB)).toBe(0xc0104a11);
  });

  it('of the wrong process are refused', async () => {
    const [vm, other] = [await start('-S', '-m', '64'), await start('-S', '-m', '32')];
    await expect(findRamBlocks(vm.qmp, other.qemu.pid)).rejects.toThrow(
      /nothing is mapped read-write|no mapping fits/,
    );
  });
});

async function description({ qemu, qmp }: Vm): Promise<VmDescription> {
  const vmstate = await VmstateFile.attach(qmp);
  const blocks = await findRamBlocks(qmp, qemu.pid);
  const described = await describeVm(qmp, qemu.pid, blocks, vmstate);
  await vmstate.detach(qmp);
  return described;
}

const NIC = ['-netdev', 'user,id=n0', '-device', 'e1000,netdev=n0,id=net0'];
const FULL = [
  '-m',
  '64',
  '-smp',
  '2',
  '-vga',
  'std',
  ...NIC,
  '-device',
  'virtio-balloon-pci',
  '-device',
  'ide-cd',
];
const BRIDGED = ['-device', 'pcie-root-port,id=rp0,chassis=1', '-device', 'virtio-net-pci,bus=rp0,id=net1'];

describe('the compatibility check', () => {
  it.each([
    ['pc', [...FULL, '-M', 'pc', '-usb', '-device', 'usb-tablet']],
    ['q35', [...FULL, '-M', 'q35', ...BRIDGED]],
  ])('finds nothing between a running %s and a fresh one', { timeout: 120_000 }, async (_, args) => {
    const [running, fresh] = [await start(...args), await start('-S', ...args)];
    await firmwareRan(running);
    const [primary, secondary] = [await description(running), await description(fresh)];
    expect(primary.sections?.length).toBeGreaterThan(20);
    expect(compareDescriptions(primary, secondary)).toEqual([]);
    expect(compareDescriptions(secondary, primary)).toEqual([]);
    // As it comes out of HELLO.
    expect(compare(JSON.parse(JSON.stringify(primary)), secondary)).toEqual([]);
    expect(await running.qmp.execute('query-status')).toMatchObject({ running: true });
  });

  it('names what differs', { timeout: 120_000 }, async () => {
    const base = ['-S', '-M', 'q35', '-cpu', 'qemu64', '-m', '64', ...NIC];
    const own = await description(await start(...base));
    const differences = async (...args: string[]) =>
      compareDescriptions(await description(await start('-S', ...args)), own);
    const q35 = ['-M', 'q35', '-cpu', 'qemu64'];
    expect(await differences(...q35, '-m', '96', ...NIC)).toEqual([
      `RAM block pc.ram: primary ${96 * MIB}, secondary ${64 * MIB}`,
    ]);
    expect(await differences('-M', 'pc', '-cpu', 'qemu64', '-m', '64', ...NIC)).toContainEqual(
      expect.stringMatching(/^machine type: primary pc-i440fx-.*, secondary pc-q35-/),
    );
    const otherMac = ['-netdev', 'user,id=n0', '-device', 'e1000,netdev=n0,id=net0,mac=52:54:00:00:00:77'];
    expect(await differences(...q35, '-m', '64', ...otherMac)).toEqual([
      'NIC net0: primary e1000 52:54:00:00:00:77, secondary e1000 52:54:00:12:34:56',
    ]);
    expect(await differences('-M', 'q35', '-cpu', 'qemu64,+avx2', '-m', '64', ...NIC)).toContainEqual(
      expect.stringMatching(/^CPU features, CPUID 0x7.0 EBX: primary 0x[0-9a-f]*20, secondary 0x0$/),
    );
    const rng = await differences(...q35, '-m', '64', ...NIC, '-device', 'virtio-rng-pci,id=rng0');
    expect(rng).toContain('device /machine/peripheral/rng0: primary virtio-rng-pci, secondary has none');
    expect(rng).toContainEqual(
      expect.stringMatching(/^PCI device 0:2.0: primary 1af4:1005 .* secondary has none$/),
    );
    expect(rng).toContainEqual(
      expect.stringMatching(/^device state of .*virtio-rng.*: primary version 1, secondary has none$/),
    );
  });
});

describe('the preflight check', () => {
  const NONE: AcceptedExceptions = { ungatedNics: [], ungatedDisks: [], sharedDisks: [] };
  const problemsOf = async ({ qemu, qmp }: Vm, exceptions = NONE) => {
    const error = (await assertProtectable(qmp, qemu.pid, exceptions).catch((reason) => reason)) as
      | PreflightError
      | undefined;
    return error?.problems.map(({ where, what }) => `${where}: ${what}`) ?? [];
  };

  it('has nothing against a common VM, as a primary or a standby', async () => {
    const vm = await start(...FULL, '-M', 'q35');
    expect(await problemsOf(vm)).toEqual([]);
    await assertUsableAsStandby(vm.qmp, vm.qemu.pid);
  });

  it('has nothing against writable disks, and names exceptions for disks that are not there', async () => {
    const vm = await start('-S', '-m', '64');
    const image = path.join(vm.qemu.folder, 'disk.raw');
    writeFileSync(image, Buffer.alloc(MIB));
    const drive = (id: string, more = '') => [
      '-drive',
      `if=none,format=raw,id=${id},file=${image}${more},file.locking=off`,
    ];
    const disks = await start(
      ...['-S', '-m', '64'],
      ...[...drive('a'), '-device', 'virtio-blk-pci,drive=a,id=vda'],
      ...[...drive('b', ',readonly=on'), '-device', 'virtio-blk-pci,drive=b,id=vdb'],
      ...[...drive('c'), '-device', 'ide-hd,drive=c'],
    );
    const ide =
      'disk c: it is an IDE disk: after a take-over the guest may wait for ever for a request that had ended';
    expect(await problemsOf(disks)).toEqual([ide]);
    expect(await problemsOf(disks, { ...NONE, ungatedDisks: ['vda'], sharedDisks: ['c'] })).toEqual([]);
    expect(await problemsOf(disks, { ...NONE, ungatedDisks: ['vdz', 'c'] })).toEqual([
      'disk vdz: the VM has none of this name',
    ]);
  });

  it('names NICs on a hub, and what blocks migration', async () => {
    const shared = [
      '-object',
      'memory-backend-memfd,id=m,size=1M',
      '-device',
      'ivshmem-plain,memdev=m,master=off',
    ];
    const vm = await start('-S', '-m', '64', '-net', 'nic,model=e1000', '-net', 'user', ...shared);
    expect(await problemsOf(vm)).toEqual([
      expect.stringMatching(/^VM: its state can't be moved: .*ivshmem/),
      "NIC e1000.0: its output can't be held: it is connected by a hub (-net); use -netdev or -nic",
    ]);
  });

  it('asks QEMU itself what it can do', async () => {
    const schema = await QmpSchema.query((await start('-S', '-m', '64')).qmp);
    expect(schema.hasCommand('xen-save-devices-state')).toBe(true);
    expect(schema.hasCommand('JOB_STATUS_CHANGE')).toBe(false);
    expect(schema.hasEvent('JOB_STATUS_CHANGE')).toBe(true);
    expect(schema.hasArgument('xen-save-devices-state', 'live')).toBe(true);
    expect(schema.hasArgument('xen-save-devices-state', 'colour')).toBe(false);
    expect(schema.hasArgument('make-coffee', 'live')).toBe(false);
  });
});

describe('another client on the monitor', () => {
  it('is named as the likely reason', async () => {
    const { qemu } = await start('-S', '-m', '64');
    await expect(qemu.connect()).rejects.toThrow(/Another client is connected/);
  });
});
