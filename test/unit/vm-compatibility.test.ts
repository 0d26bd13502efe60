import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { compare } from '../../src/vm/compatibility.ts';
import type { VmDescription } from '../../src/vm/description.ts';

const pciDevice = (address: string, device: number) => ({
  address,
  class: 0x200,
  vendor: 0x1af4,
  device,
  subsystemVendor: 0x1af4,
  subsystem: 1,
  irqPin: 1,
});

const BASE: VmDescription = {
  qemu: { major: 7, minor: 2, micro: 22 },
  machine: 'pc-q35-7.2',
  accelerator: 'kvm',
  ramBlocks: [
    { name: 'pc.ram', sizeBytes: 1 << 28 },
    { name: '0000:00:01.0/vga.vram', sizeBytes: 1 << 24 },
  ],
  cpus: {
    count: 2,
    types: ['qemu64-x86_64-cpu'],
    topology: { cpus: 2, cores: 2 },
    features: { '0x1.0 EDX': 0x78bfbfd, '0x7.0 EBX': 0 },
  },
  nics: [{ id: 'net0', model: 'virtio-net-pci', mac: '52:54:00:12:34:56' }],
  pci: [pciDevice('0:1.0', 0x1000), pciDevice('0:2.0', 0xc)],
  devices: [
    { path: '/machine/peripheral/net0', type: 'virtio-net-pci' },
    { path: '/machine/peripheral-anon/device[0]', type: 'virtio-rng-pci' },
    { path: '/machine/unattached/device[0]', type: 'qemu64-x86_64-cpu' },
    { path: '/machine/unattached/device[1]', type: 'hpet' },
  ],
  disks: [
    {
      id: 'vda',
      sizeBytes: 4096,
      readOnly: false,
      removable: false,
      copy: 'none',
      bufferBytes: 0,
      worldWideId: null,
    },
  ],
  diskOwner: null,
  sections: [
    { name: 'timer', instance: 0, version: 2 },
    { name: 'apic', instance: 1, version: 3 },
  ],
};

type Change = (description: VmDescription) => void;

function changed(change: Change): VmDescription {
  const copy = structuredClone(BASE);
  change(copy);
  return copy;
}

/** The items of a list that a test knows to be there. */
function at<T>(list: T[], index: number): T {
  const item = list[index];
  if (item === undefined) throw new Error(`no item ${index}`);
  return item;
}

describe('compare', () => {
  it('finds nothing between equals', () => {
    expect(compare(structuredClone(BASE), BASE)).toEqual([]);
  });

  it.each<[string, Change]>([
    ['another stable release', (vm) => (vm.qemu.micro = 3)],
    ['an older primary', (vm) => (vm.qemu = { major: 6, minor: 2, micro: 0 })],
    ['another order of RAM blocks', (vm) => vm.ramBlocks.reverse()],
    ['another order of devices', (vm) => vm.devices.reverse()],
    ['numbered bridges', (vm) => vm.pci.push(pciDevice('0:2.0/0.0', 0x1041))],
    ['levels of topology that only one QEMU knows', (vm) => (vm.cpus.topology['modules'] = 1)],
    ['CPUID words that only one QEMU knows', (vm) => (vm.cpus.features['0x24.0 EBX'] = 0)],
    // Which every object seems to have.
    ['a CPUID word of a strange name', (vm) => (vm.cpus.features['constructor'] = 0)],
    ['features that follow from the topology', (vm) => (vm.cpus.features['0x1.0 EDX'] = 0x178bfbfd)],
    [
      'the size of a disk that is copied',
      (vm) => Object.assign(at(vm.disks, 0), { copy: 'copied', sizeBytes: 8192 }),
    ],
    [
      'a medium in a drive',
      (vm) => vm.disks.push({ ...at(vm.disks, 0), id: 'cd0', removable: true, readOnly: true }),
    ],
    ['a MAC address in capitals', (vm) => (at(vm.nics, 0).mac = '52:54:00:12:34:56'.toUpperCase())],
    ['an older version of a section', (vm) => (at(vm.sections ?? [], 1).version = 2)],
    ['a section that only the secondary has', (vm) => vm.sections?.pop()],
    ['sections that nobody looked at', (vm) => (vm.sections = null)],
    ['a member of a later version', (vm) => Object.assign(vm, { colour: 'blue' })],
  ])('does not mind %s', (_, change) => {
    expect(compare(changed(change), BASE)).toEqual([]);
  });

  it('does not compare the boards of different series', () => {
    const older = changed((vm) => {
      vm.qemu.minor = 1;
      at(vm.devices, 3).type = 'i8257';
    });
    expect(compare(older, BASE)).toEqual([]);
  });

  it.each<[string, Change]>([
    ['machine type: primary pc-i440fx-7.2, secondary pc-q35-7.2', (vm) => (vm.machine = 'pc-i440fx-7.2')],
    ['accelerator: primary tcg, secondary kvm', (vm) => (vm.accelerator = 'tcg')],
    [
      'QEMU version: primary 8.0.0, secondary 7.2.22: an older QEMU may not load what a newer one saved',
      (vm) => (vm.qemu = { major: 8, minor: 0, micro: 0 }),
    ],
    ['RAM block pc.ram: primary 4096, secondary 268435456', (vm) => (at(vm.ramBlocks, 0).sizeBytes = 4096)],
    [
      'RAM block dimm: primary 4096, secondary has none',
      (vm) => vm.ramBlocks.push({ name: 'dimm', sizeBytes: 4096 }),
    ],
    ['RAM block 0000:00:01.0/vga.vram: primary has none, secondary 16777216', (vm) => vm.ramBlocks.pop()],
    ['CPUs: primary 4, secondary 2', (vm) => (vm.cpus.count = 4)],
    [
      'CPU model: primary host-x86_64-cpu, secondary qemu64-x86_64-cpu',
      (vm) => (vm.cpus.types = ['host-x86_64-cpu']),
    ],
    ['CPU topology cores: primary 1, secondary 2', (vm) => (vm.cpus.topology['cores'] = 1)],
    [
      'CPU features, CPUID 0x7.0 EBX: primary 0x80000020, secondary 0x0',
      (vm) => (vm.cpus.features['0x7.0 EBX'] = 0x80000020),
    ],
    [
      'NIC net0: primary e1000 52:54:00:12:34:56, secondary virtio-net-pci 52:54:00:12:34:56',
      (vm) => (at(vm.nics, 0).model = 'e1000'),
    ],
    [
      'PCI device 0:1.0: primary 1af4:1000 (class 0200, subsystem 1af4:0001, interrupt pin 2), ' +
        'secondary 1af4:1000 (class 0200, subsystem 1af4:0001, interrupt pin 1)',
      (vm) => (at(vm.pci, 0).irqPin = 2),
    ],
    [
      'device /machine/peripheral/net0: primary e1000, secondary virtio-net-pci',
      (vm) => (at(vm.devices, 0).type = 'e1000'),
    ],
    [
      'devices of type virtio-rng-pci: primary 2, secondary 1',
      (vm) => vm.devices.push({ path: '/machine/peripheral-anon/device[1]', type: 'virtio-rng-pci' }),
    ],
    ['board devices of type hpet: primary has none, secondary 1', (vm) => vm.devices.pop()],
    [
      'disk vda: primary 4096 bytes, read-only, secondary 4096 bytes',
      (vm) => (at(vm.disks, 0).readOnly = true),
    ],
    [
      'disk fd0: primary has it, secondary has none',
      (vm) => vm.disks.push({ ...at(vm.disks, 0), id: 'fd0', removable: true, copy: 'copied' }),
    ],
    [
      'device state of apic (instance 1): primary version 4, secondary version 3',
      (vm) => (at(vm.sections ?? [], 1).version = 4),
    ],
    [
      'device state of slirp (instance 0): primary version 4, secondary has none',
      (vm) => vm.sections?.push({ name: 'slirp', instance: 0, version: 4 }),
    ],
  ])('names the difference: %s', (difference, change) => {
    expect(compare(changed(change), BASE)).toEqual([difference]);
  });

  it('compares behind bridges that list something on both sides', () => {
    const own = changed((vm) => vm.pci.push(pciDevice('0:2.0/0.0', 0x1041)));
    const primary = changed((vm) => vm.pci.push(pciDevice('0:2.0/0.0', 0x1042)));
    expect(compare(primary, own)).toEqual([
      expect.stringMatching(/^PCI device 0:2\.0\/0\.0: primary 1af4:1042/),
    ]);
  });
});

describe('a malformed description', () => {
  it.each<[string, unknown]>([
    ['the description is not an object', null],
    ['the description is not an object', []],
    ['the description is not an object', 'vm'],
    ['qemu is not an object', {}],
    ['qemu.major is not a whole number', { ...BASE, qemu: { ...BASE.qemu, major: '7' } }],
    ['machine is not a printable text', { ...BASE, machine: 'pc\u001b[2J' }],
    ['machine is not a printable text', { ...BASE, machine: 'x'.repeat(257) }],
    ['accelerator is not kvm or tcg', { ...BASE, accelerator: 'xen' }],
    ['ramBlocks is not a list', { ...BASE, ramBlocks: {} }],
    ['ramBlocks[0].sizeBytes is not a whole number', { ...BASE, ramBlocks: [{ name: 'a', sizeBytes: -1 }] }],
    [
      'ramBlocks[0].sizeBytes is not a whole number',
      { ...BASE, ramBlocks: [{ name: 'a', sizeBytes: 2 ** 53 }] },
    ],
    ['nics is not a list of at most 10000 items', { ...BASE, nics: new Array(10_001).fill(BASE.nics[0]) }],
    [
      'cpus.topology.cores is not a whole number',
      { ...BASE, cpus: { ...BASE.cpus, topology: { cores: 1.5 } } },
    ],
    [
      'disks[0].copy is not copied or shared or none',
      { ...BASE, disks: [{ ...BASE.disks[0], copy: 'maybe' }] },
    ],
    ['disks[0].readOnly is not true or false', { ...BASE, disks: [{ ...BASE.disks[0], readOnly: 'no' }] }],
    ['sections is not a list', { ...BASE, sections: undefined }],
  ])('is a difference: %s', (text, value) => {
    expect(compare(value, BASE)).toEqual([expect.stringContaining(`malformed: ${text}`)]);
  });

  it('never makes the check throw', () => {
    fc.assert(
      fc.property(fc.jsonValue(), (value) => {
        expect(compare(value, BASE)).toHaveLength(1);
      }),
    );
  });

  it('in any one member is found', () => {
    const paths = Object.keys(BASE) as (keyof VmDescription)[];
    fc.assert(
      fc.property(
        fc.constantFrom(...paths),
        fc.oneof(fc.integer({ max: -1 }), fc.constant('\n'), fc.boolean()),
        (name, wrong) => {
          expect(compare({ ...BASE, [name]: wrong }, BASE)).toEqual([
            expect.stringContaining(`malformed: ${name} `),
          ]);
        },
      ),
    );
  });
});
