/** What a VM is, as HELLO carries it: everything that must be equal on both sides before one's state can be loaded into the other. */
import { readFileSync } from 'node:fs';
import type { QmpClient } from '../qmp/client.ts';
import type { PciDevice } from '../qmp/commands.ts';
import type { Json } from '../qmp/json.ts';
import { listDevices } from './device-tree.ts';
import { copiedDisks, type Disk, type DiskExceptions, findDisks } from './disks.ts';
import { findNics } from './nics.ts';
import type { RamBlock } from './ram-blocks.ts';
import type { VmstateFile } from './vmstate.ts';
import { parseSections, type Section } from './vmstate-sections.ts';
import { worldWideId } from './world-wide-id.ts';

export interface DescribedPciDevice {
  /** `BUS:SLOT.FUNCTION`, behind a bridge `BRIDGE/SLOT.FUNCTION`: bus numbers there are given by firmware. */
  address: string;
  class: number;
  vendor: number;
  device: number;
  subsystemVendor: number;
  subsystem: number;
  irqPin: number;
}

export interface DescribedDisk {
  id: string;
  sizeBytes: number;
  readOnly: boolean;
  removable: boolean;
  /** What the primary does with it: copied to the standby's; the same disk on both hosts; nothing. A standby has no say. */
  copy: 'copied' | 'shared' | 'none';
  /** The limit of the primary's log of its writes; 0 where none is kept. */
  bufferBytes: number;
  /** Of the unit behind a block device, the same on every host that reaches it. */
  worldWideId: string | null;
}

/** A primary's disks, as it treats them. */
export interface ProtectedDisks extends DiskExceptions {
  owner: string | null;
  /** For each disk. */
  bufferBytes: number;
}

export interface VmDescription {
  qemu: { major: number; minor: number; micro: number };
  /** With its version: `pc-q35-7.2`. */
  machine: string;
  accelerator: 'kvm' | 'tcg';
  /** The blocks' order here is what an index on the wire refers to. */
  ramBlocks: { name: string; sizeBytes: number }[];
  cpus: {
    count: number;
    types: string[];
    topology: Record<string, number>;
    /** CPUID words by register and leaf; empty where the architecture has none. */
    features: Record<string, number>;
  };
  nics: { id: string; model: string; mac: string }[];
  pci: DescribedPciDevice[];
  /** QOM paths and types. */
  devices: { path: string; type: string }[];
  disks: DescribedDisk[];
  /** What the records beside the primary's disks carry: a standby that finds it beside its own has been given the primary's. */
  diskOwner: string | null;
  /** What the device state holds; null when nobody looked. */
  sections: Section[] | null;
}

/** With a `vmstate` file, the device state is saved once to see its sections; a running VM stands for the milliseconds that takes. */
export async function describeVm(
  qmp: QmpClient,
  pid: number,
  blocks: readonly RamBlock[],
  vmstate: VmstateFile | null = null,
  protectedDisks: ProtectedDisks = { ungatedDisks: [], sharedDisks: [], owner: null, bufferBytes: 0 },
): Promise<VmDescription> {
  const [machineType, kvm, buses] = await qmp.executeAll([
    ['qom-get', { path: '/machine', property: 'type' }],
    ['query-kvm'],
    ['query-pci'],
  ]);
  const [nics, devices, disks] = await Promise.all([findNics(qmp, pid), listDevices(qmp), findDisks(qmp)]);
  await vmstate?.save(qmp);
  return {
    qemu: qmp.version,
    machine: String(machineType).replace(/-machine$/, ''),
    accelerator: kvm.enabled ? 'kvm' : 'tcg',
    ramBlocks: blocks.map(({ name, sizeBytes }) => ({ name, sizeBytes })),
    cpus: await describeCpus(qmp),
    nics: nics.map(({ id, model, mac }) => ({ id, model, mac })),
    pci: buses.flatMap(({ bus, devices: onBus }) => flatten(`${bus}:`, onBus)),
    devices: devices.map(({ path, type }) => ({ path, type })),
    disks: disks.map((disk) => describeDisk(disk, protectedDisks)),
    diskOwner: protectedDisks.owner,
    sections: vmstate && parseSections(readFileSync(`/proc/self/fd/${vmstate.fd}`)),
  };
}

function describeDisk(disk: Disk, primary: ProtectedDisks): DescribedDisk {
  const { id, sizeBytes, readOnly, removable, file } = disk;
  const copied = copiedDisks([disk], primary).length > 0;
  const copy = copied ? 'copied' : primary.sharedDisks.includes(id) ? 'shared' : 'none';
  const bufferBytes = copied ? primary.bufferBytes : 0;
  return { id, sizeBytes, readOnly, removable, copy, bufferBytes, worldWideId: worldWideId(file) };
}

async function describeCpus(qmp: QmpClient): Promise<VmDescription['cpus']> {
  const [cpus, topology] = await qmp.executeAll([
    ['query-cpus-fast'],
    ['qom-get', { path: '/machine', property: 'smp' }],
  ]);
  const types = await qmp.executeAll(
    cpus.map((cpu) => ['qom-get', { path: cpu['qom-path'], property: 'type' }] as const),
  );
  return {
    count: cpus.length,
    types: [...new Set(types.map(String))].sort(),
    topology: topology as Record<string, number>,
    features: await cpuFeatures(qmp, cpus[0]?.['qom-path']),
  };
}

interface FeatureWord {
  'cpuid-input-eax': number;
  'cpuid-input-ecx'?: number;
  'cpuid-register': string;
  features: number;
}

/** All CPUs of a VM are alike. `feature-words` exists on x86 only. */
async function cpuFeatures(qmp: QmpClient, cpuPath: string | undefined): Promise<Record<string, number>> {
  if (cpuPath === undefined) return {};
  const properties = await qmp.execute('qom-list', { path: cpuPath });
  if (!properties.some(({ name }) => name === 'feature-words')) return {};
  const words = (await qmp.execute('qom-get', {
    path: cpuPath,
    property: 'feature-words',
  })) as Json as unknown as FeatureWord[];
  const features: Record<string, number> = {};
  for (const word of words) {
    const leaf = `0x${word['cpuid-input-eax'].toString(16)}`;
    const key = `${leaf}.${word['cpuid-input-ecx'] ?? 0} ${word['cpuid-register']}`;
    // QEMU keeps some registers in several words. Bitwise operators would make a negative number of bit 31.
    features[key] = ((features[key] ?? 0) | word.features) >>> 0;
  }
  return features;
}

function flatten(prefix: string, devices: readonly PciDevice[]): DescribedPciDevice[] {
  return devices.flatMap((device) => {
    const address = `${prefix}${device.slot}.${device.function}`;
    const described = {
      address,
      class: device.class_info.class,
      vendor: device.id.vendor,
      device: device.id.device,
      subsystemVendor: device.id['subsystem-vendor'] ?? 0,
      subsystem: device.id.subsystem ?? 0,
      irqPin: device.irq_pin,
    };
    return [described, ...flatten(`${address}/`, device.pci_bridge?.devices ?? [])];
  });
}
