/**
 * Whether a standby can carry a primary's VM, before anything is stopped or copied. A difference that would make the load fail, or the guest
 * find another machine than the one it ran on, is named. What a running guest, its firmware or a person changes (PCI bus numbers and BARs, the medium in a
 * drive, the address a NIC is set to) is not compared: the standby has not run yet.
 */
import type { DescribedDisk, DescribedPciDevice, VmDescription } from './description.ts';
import { checkDescription, MalformedDescriptionError } from './description-check.ts';
import type { Section } from './vmstate-sections.ts';

/** Named differences between what HELLO said and `own`; none means that the standby will do. */
export function compare(primary: unknown, own: VmDescription): string[] {
  let checked: VmDescription;
  try {
    checked = checkDescription(primary);
  } catch (error) {
    if (error instanceof MalformedDescriptionError)
      return [`the primary's description of its VM is malformed: ${error.message}`];
    throw error;
  }
  return compareDescriptions(checked, own);
}

export function compareDescriptions(primary: VmDescription, secondary: VmDescription): string[] {
  return [
    ...differentValue('machine type', primary.machine, secondary.machine),
    ...differentValue('accelerator', primary.accelerator, secondary.accelerator),
    ...compareVersions(primary, secondary),
    ...compareNamed(
      'RAM block',
      byKey(primary.ramBlocks, 'name', 'sizeBytes'),
      byKey(secondary.ramBlocks, 'name', 'sizeBytes'),
    ),
    ...compareCpus(primary.cpus, secondary.cpus),
    ...compareNics(primary, secondary),
    ...comparePci(primary.pci, secondary.pci),
    ...compareDevices(primary, secondary),
    ...compareDisks(primary, secondary),
    ...(primary.sections && secondary.sections ? compareSections(primary.sections, secondary.sections) : []),
  ];
}

type Named = Map<string, string>;

function differentValue(what: string, primary: string | number, secondary: string | number): string[] {
  return primary === secondary ? [] : [`${what}: primary ${primary}, secondary ${secondary}`];
}

/** One difference for each key that has another value, or only exists on one side. */
function compareNamed(what: string, primary: Named, secondary: Named): string[] {
  const keys = new Set([...primary.keys(), ...secondary.keys()]);
  return [...keys].flatMap((key) => {
    return differentValue(`${what} ${key}`, primary.get(key) ?? 'has none', secondary.get(key) ?? 'has none');
  });
}

function byKey<Item extends object>(items: readonly Item[], key: keyof Item, value: keyof Item): Named {
  return new Map(items.map((item) => [String(item[key]), String(item[value])]));
}

/** QEMU loads what an older release saved for the same machine type, not what a newer one did; releases of one series save alike. */
function compareVersions({ qemu: primary }: VmDescription, { qemu: secondary }: VmDescription): string[] {
  const older =
    secondary.major < primary.major || (secondary.major === primary.major && secondary.minor < primary.minor);
  if (!older) return [];
  const [p, s] = [primary, secondary].map(({ major, minor, micro }) => `${major}.${minor}.${micro}`);
  return [`QEMU version: primary ${p}, secondary ${s}: an older QEMU may not load what a newer one saved`];
}

/** "Several logical processors" (HTT, CmpLegacy) follow from the topology; QEMU counts them as features only since 10.0. */
const TOPOLOGY_BITS = new Map([
  ['0x1.0 EDX', 1 << 28],
  ['0x80000001.0 ECX', 1 << 1],
]);

function withoutTopology(features: Record<string, number>): Record<string, number> {
  return Object.fromEntries(
    Object.entries(features).map(([key, word]) => [key, (word & ~(TOPOLOGY_BITS.get(key) ?? 0)) >>> 0]),
  );
}

function compareCpus(primary: VmDescription['cpus'], secondary: VmDescription['cpus']): string[] {
  const [primaryFeatures, secondaryFeatures] = [
    withoutTopology(primary.features),
    withoutTopology(secondary.features),
  ];
  return [
    ...differentValue('CPUs', primary.count, secondary.count),
    ...differentValue('CPU model', primary.types.join(', '), secondary.types.join(', ')),
    // A newer QEMU knows further levels of topology (of which there is 1) and further CPUID words (which are 0).
    ...compareNumbers('CPU topology', primary.topology, secondary.topology, 1, String),
    ...compareNumbers(
      'CPU features, CPUID',
      primaryFeatures,
      secondaryFeatures,
      0,
      (word) => `0x${word.toString(16)}`,
    ),
  ];
}

function compareNumbers(
  what: string,
  primary: Record<string, number>,
  secondary: Record<string, number>,
  missing: number,
  format: (value: number) => string,
): string[] {
  // A peer chooses the names: `constructor` must not be found in every object.
  const [ofPrimary, ofSecondary] = [new Map(Object.entries(primary)), new Map(Object.entries(secondary))];
  return [...new Set([...ofPrimary.keys(), ...ofSecondary.keys()])].flatMap((key) => {
    return differentValue(
      `${what} ${key}`,
      format(ofPrimary.get(key) ?? missing),
      format(ofSecondary.get(key) ?? missing),
    );
  });
}

function compareNics(primary: VmDescription, secondary: VmDescription): string[] {
  const named = (nics: VmDescription['nics']) =>
    new Map(nics.map(({ id, model, mac }) => [id, `${model} ${mac.toLowerCase()}`]));
  return compareNamed('NIC', named(primary.nics), named(secondary.nics));
}

const parentOf = (address: string) => address.slice(0, address.lastIndexOf('/') + 1);
const hex = (value: number) => value.toString(16).padStart(4, '0');

/** QEMU lists what is behind a bridge only once firmware has numbered its bus, so only bridges that list something on both sides are compared. */
function comparePci(primary: DescribedPciDevice[], secondary: DescribedPciDevice[]): string[] {
  const parents = (devices: DescribedPciDevice[]) =>
    new Set(['', ...devices.map(({ address }) => parentOf(address))]);
  const [primaryParents, secondaryParents] = [parents(primary), parents(secondary)];
  const named = (devices: DescribedPciDevice[]): Named => {
    const visible = devices.filter(
      ({ address }) => primaryParents.has(parentOf(address)) && secondaryParents.has(parentOf(address)),
    );
    return new Map(visible.map((device) => [device.address, formatPciDevice(device)]));
  };
  return compareNamed('PCI device', named(primary), named(secondary));
}

function formatPciDevice(device: DescribedPciDevice): string {
  const ids = `${hex(device.vendor)}:${hex(device.device)}`;
  const subsystem = `${hex(device.subsystemVendor)}:${hex(device.subsystem)}`;
  return `${ids} (class ${hex(device.class)}, subsystem ${subsystem}, interrupt pin ${device.irqPin})`;
}

const NAMED_DEVICES = '/machine/peripheral/';
const OTHER_DEVICES = ['/machine/peripheral-anon/', '/machine/unattached/'];

function compareDevices(primary: VmDescription, secondary: VmDescription): string[] {
  const named = ({ devices }: VmDescription) => devices.filter(({ path }) => path.startsWith(NAMED_DEVICES));
  const differences = compareNamed(
    'device',
    byKey(named(primary), 'path', 'type'),
    byKey(named(secondary), 'path', 'type'),
  );
  const [anonymous = '', board = ''] = OTHER_DEVICES;
  differences.push(
    ...compareNamed('devices of type', countTypes(primary, anonymous), countTypes(secondary, anonymous)),
  );
  // Releases build the same board from different internal devices.
  const sameSeries =
    primary.qemu.major === secondary.qemu.major && primary.qemu.minor === secondary.qemu.minor;
  if (sameSeries)
    differences.push(
      ...compareNamed('board devices of type', countTypes(primary, board), countTypes(secondary, board)),
    );
  return differences;
}

function countTypes({ devices }: VmDescription, container: string): Named {
  const counts = new Map<string, number>();
  for (const { path, type } of devices) {
    if (path.startsWith(container)) counts.set(type, (counts.get(type) ?? 0) + 1);
  }
  return new Map([...counts].map(([type, number]) => [type, String(number)]));
}

/**
 * What lies in a removable drive and isn't copied is no part of the machine. The size and the access of a disk that is copied are looked at with the
 * disk itself: src/vm/standby-disks.ts.
 */
function compareDisks(primary: VmDescription, secondary: VmDescription): string[] {
  const copied = new Set(primary.disks.filter(({ copy }) => copy === 'copied').map(({ id }) => id));
  const named = ({ disks }: VmDescription) => {
    return new Map(
      disks
        .filter(({ id, removable }) => copied.has(id) || !removable)
        .map(({ id, sizeBytes, readOnly }) => [
          id,
          copied.has(id) ? 'has it' : `${sizeBytes} bytes${readOnly ? ', read-only' : ''}`,
        ]),
    );
  };
  return [
    ...compareNamed('disk', named(primary), named(secondary)),
    ...primary.disks.flatMap((disk) => sharedUnit(disk, secondary)),
  ];
}

/** Both hosts' block devices are one: to copy it would be to write it under the primary's feet. */
function sharedUnit({ id, copy, worldWideId }: DescribedDisk, secondary: VmDescription): string[] {
  if (copy !== 'copied' || worldWideId === null) return [];
  const same = secondary.disks.find((disk) => disk.worldWideId === worldWideId);
  if (!same) return [];
  return [
    `disk ${id}: both hosts reach the same unit (${worldWideId}): say --shared-disk ${id} on the primary`,
  ];
}

/** QEMU refuses a section that it doesn't expect, or of a version that it doesn't know yet; it doesn't miss one that isn't there. */
export function compareSections(primary: readonly Section[], secondary: readonly Section[]): string[] {
  const key = ({ name, instance }: { name: string; instance: number }) => `${name} (instance ${instance})`;
  const known = new Map(secondary.map((section) => [key(section), section.version]));
  return primary.flatMap((section) => {
    const version = known.get(key(section));
    if (version !== undefined && version >= section.version) return [];
    const there = version === undefined ? 'has none' : `version ${version}`;
    return [`device state of ${key(section)}: primary version ${section.version}, secondary ${there}`];
  });
}
