/** A peer's description of its VM, checked member by member: it comes from another host and is JSON of any shape until then. */
import type { DescribedDisk, DescribedPciDevice, VmDescription } from './description.ts';
import type { Section } from './vmstate-sections.ts';

/** Says which member is wrong and how. */
export class MalformedDescriptionError extends Error {
  constructor(path: string, expected: string) {
    super(`${path || 'the description'} is not ${expected}`);
    this.name = 'MalformedDescriptionError';
  }
}

const LIST_LENGTH_MAX = 10_000;
const TEXT_LENGTH_MAX = 256;
const PRINTABLE = /^[\x20-\x7e]*$/;

/** A checker takes a value and its place, for errors, and returns the value typed. Members that it doesn't know are dropped. */
type Checker<T> = (value: unknown, path: string) => T;

const text: Checker<string> = (value, path) => {
  // Differences are shown on terminals: nothing that a terminal would obey may get there.
  if (typeof value === 'string' && value.length <= TEXT_LENGTH_MAX && PRINTABLE.test(value)) return value;
  throw new MalformedDescriptionError(path, `a printable text of at most ${TEXT_LENGTH_MAX} characters`);
};

const count: Checker<number> = (value, path) => {
  if (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0) return value;
  throw new MalformedDescriptionError(path, 'a whole number from 0 to 2^53 - 1');
};

const flag: Checker<boolean> = (value, path) => {
  if (typeof value === 'boolean') return value;
  throw new MalformedDescriptionError(path, 'true or false');
};

function oneOf<const T extends string>(...allowed: T[]): Checker<T> {
  return (value, path) => {
    const found = allowed.find((candidate) => candidate === value);
    if (found !== undefined) return found;
    throw new MalformedDescriptionError(path, allowed.join(' or '));
  };
}

function list<T>(item: Checker<T>): Checker<T[]> {
  return (value, path) => {
    if (!Array.isArray(value) || value.length > LIST_LENGTH_MAX) {
      throw new MalformedDescriptionError(path, `a list of at most ${LIST_LENGTH_MAX} items`);
    }
    return value.map((member, index) => item(member, `${path}[${index}]`));
  };
}

function nullable<T>(checker: Checker<T>): Checker<T | null> {
  return (value, path) => (value === null ? null : checker(value, path));
}

function members(value: unknown, path: string): [string, unknown][] {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return Object.entries(value);
  throw new MalformedDescriptionError(path, 'an object');
}

function object<T extends object>(shape: { [Name in keyof T]: Checker<T[Name]> }): Checker<T> {
  return (value, path) => {
    const given = new Map(members(value, path));
    const checked = Object.entries(shape).map(([name, checker]) => {
      return [name, (checker as Checker<unknown>)(given.get(name), path === '' ? name : `${path}.${name}`)];
    });
    return Object.fromEntries(checked) as T;
  };
}

const numbersByName: Checker<Record<string, number>> = (value, path) => {
  const entries = members(value, path);
  if (entries.length > LIST_LENGTH_MAX)
    throw new MalformedDescriptionError(path, `an object of at most ${LIST_LENGTH_MAX} members`);
  return Object.fromEntries(
    entries.map(([name, number]) => [text(name, path), count(number, `${path}.${text(name, path)}`)]),
  );
};

const pciDevice = object<DescribedPciDevice>({
  address: text,
  class: count,
  vendor: count,
  device: count,
  subsystemVendor: count,
  subsystem: count,
  irqPin: count,
});

const description = object<VmDescription>({
  qemu: object({ major: count, minor: count, micro: count }),
  machine: text,
  accelerator: oneOf('kvm', 'tcg'),
  ramBlocks: list(object({ name: text, sizeBytes: count })),
  cpus: object({ count, types: list(text), topology: numbersByName, features: numbersByName }),
  nics: list(object({ id: text, model: text, mac: text })),
  pci: list(pciDevice),
  devices: list(object({ path: text, type: text })),
  disks: list(
    object<DescribedDisk>({
      id: text,
      sizeBytes: count,
      readOnly: flag,
      removable: flag,
      copy: oneOf('copied', 'shared', 'none'),
      bufferBytes: count,
      worldWideId: nullable(text),
    }),
  ),
  diskOwner: nullable(text),
  sections: nullable(list(object<Section>({ name: text, instance: count, version: count }))),
});

/** Throws MalformedDescriptionError. */
export function checkDescription(value: unknown): VmDescription {
  return description(value, '');
}
