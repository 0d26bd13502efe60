/**
 * A standby's disks. What the guest can write becomes a raw file of the same size under the same id (docs/disks.md says why raw); what it can only read stays,
 * and must be on the standby's host too.
 */
import type { QemuOption } from './command.ts';
import { OptionValue } from './option-value.ts';
import type { PrimaryDrive, Translation } from './translation.ts';

/** Of a -drive: how the device reaches its disk, not which file that is. */
const KEPT_KEYS = new Set([
  ...[
    'id',
    'if',
    'index',
    'bus',
    'unit',
    'media',
    'cache',
    'aio',
    'discard',
    'detect-zeroes',
    'werror',
    'rerror',
  ],
  ...[
    'readonly',
    'read-only',
    'auto-read-only',
    'copy-on-read',
    'group',
    'node-name',
    'file.locking',
    'file.aio',
  ],
]);
const KEPT_GROUPS = /^(cache\.|throttling\.|bps|iops|stats-)/;
/** They get another value. */
const SET_KEYS = new Set(['file', 'format']);
/** Which image, and how its format is read. */
const IMAGE_KEYS = new Set([
  ...['driver', 'filename', 'snapshot', 'l2-cache-size', 'l2-cache-entry-size', 'cache-size'],
  ...['refcount-cache-size', 'cache-clean-interval', 'lazy-refcounts', 'overlap-check', 'offset', 'size'],
  ...[
    'pass-discard-request',
    'pass-discard-snapshot',
    'pass-discard-other',
    'backing',
    'data-file',
    'locking',
  ],
]);
const IMAGE_GROUPS = /^(file\.|backing\.|data-file\.|overlap-check\.)/;

/** `file=json:...` and the like stay out of it: the file is replaced whole. */
export function translateDrives(options: QemuOption[], translation: Translation): QemuOption[] {
  const graph = new BlockGraph(options, translation);
  const known = new Set<PrimaryDrive>();
  const translated = options.map((option) => {
    if (option.name !== 'drive' || option.value === null) return option;
    const value = new OptionValue(option.value, '');
    const drive = driveOf(value, translation);
    if (drive) known.add(drive);
    return { ...option, value: translateDrive(value, drive, option.value, translation) };
  });
  const replaced = graph.replaceWritable(translated, known);
  for (const { id } of translation.primary.drives.filter((drive) => !known.has(drive))) {
    translation.refuse(
      `disk ${id}`,
      "it isn't in QEMU's command line: it was plugged in, or another medium put in, later",
      "restart the VM with it, or write the standby's command line by hand (docs/standby.md)",
    );
  }
  unknownChoices(translation);
  return replaced;
}

function unknownChoices(translation: Translation): void {
  const ids = translation.primary.drives.map(({ id }) => id);
  for (const id of translation.choices.disks.keys()) {
    if (!ids.includes(id))
      translation.refuse(`--disk ${id}`, 'the VM has no such disk', `its disks: ${ids.join(', ') || 'none'}`);
  }
}

/** QEMU calls a -drive without an id by its interface and number: virtio0, ide1-cd0, pflash1. */
function driveOf(value: OptionValue, { primary }: Translation): PrimaryDrive | undefined {
  const id = value.get('id');
  if (id !== null) return primary.drives.find(({ drive }) => drive === id);
  const kind = value.get('if') ?? '';
  const index = value.get('index') ?? value.get('unit');
  const named = primary.drives.filter(({ drive }) => kind !== '' && drive.startsWith(kind));
  if (index === null) return named.length === 1 ? named[0] : undefined;
  return named.find(({ drive }) => drive === `${kind}${index}`);
}

function translateDrive(
  value: OptionValue,
  drive: PrimaryDrive | undefined,
  text: string,
  translation: Translation,
): string {
  const where = `-drive ${text}`;
  if (drive === undefined) {
    // An empty drive has no medium to be told of.
    if (value.get('file') !== null)
      translation.refuse(
        where,
        "QEMU has no such disk now, or it can't be told which",
        'give it an id, and restart the VM',
      );
    return text;
  }
  if (drive.readOnly) {
    keepReadOnly(value, drive, translation);
    return value.toString();
  }
  for (const key of value.keys()) {
    if (KEPT_KEYS.has(key) || KEPT_GROUPS.test(key) || SET_KEYS.has(key)) continue;
    if (key.startsWith('encrypt.') || key === 'key-secret') {
      if (!isChosen(drive, translation)) return refuseEncrypted(where, drive, text, translation);
    } else if (!IMAGE_KEYS.has(key) && !IMAGE_GROUPS.test(key))
      translation.refuse(where, `'${key}' can't be taken over`, 'leave it out, and restart the VM');
    value.delete(key);
  }
  value.set('file', newFile(drive, text, translation));
  value.set('format', 'raw');
  return value.toString();
}

function isChosen({ id }: PrimaryDrive, { choices }: Translation): boolean {
  return choices.disks.has(id);
}

function refuseEncrypted(
  where: string,
  { id }: PrimaryDrive,
  text: string,
  translation: Translation,
): string {
  translation.refuse(
    where,
    "it is encrypted, and what the guest wrote would lie in the standby's raw file as plain text",
    `say where it may: --disk ${id}=FILE, best a device of dm-crypt`,
  );
  return text;
}

function keepReadOnly(value: OptionValue, drive: PrimaryDrive, translation: Translation): void {
  const key = ['file', 'filename', 'file.filename'].find((name) => value.get(name) !== null);
  if (key === undefined) return;
  const primary = value.get(key) ?? '';
  const chosen = translation.choices.disks.get(drive.id);
  if (chosen !== undefined) translation.differ(`disk ${drive.id}`, primary, chosen, null);
  // A protocol's address (`nbd://`, `json:`) is as good there as here.
  if (chosen === undefined && /^[a-z0-9+]{2,}:/.test(primary)) return;
  value.set(key, translation.need(`disk ${drive.id}, read-only`, chosen ?? primary));
}

/** Where the standby's disk lies; noted as one to make. */
function newFile(drive: PrimaryDrive, primary: string, translation: Translation): string {
  const { id, sizeBytes, flash } = drive;
  const chosen = translation.choices.disks.get(id);
  const what = flash ? `firmware flash ${id}` : `disk ${id}`;
  let file = chosen;
  if (file === undefined) {
    file = translation.place(what, primary, `${id}.raw`);
    const difference = translation.differences.at(-1);
    if (difference) difference.option = `--disk ${id}=FILE`;
  } else translation.differ(what, primary, file, `--disk ${id}=FILE`);
  translation.disks.push({ id, file, sizeBytes });
  return file;
}

/** What a -blockdev of a disk that is to be raw hands on to the raw one. */
const NODE_KEYS = ['cache', 'discard', 'detect-zeroes'];
/** A disk's image, in whatever format, becomes raw; what filters it (throttle, quorum, ...) would be lost. */
const FORMATS = new Set([
  'raw',
  'qcow2',
  'qcow',
  'qed',
  'vmdk',
  'vdi',
  'vhdx',
  'vpc',
  'parallels',
  'bochs',
  'cloop',
]);
const PROTOCOLS = new Set([
  'file',
  'host_device',
  'nbd',
  'iscsi',
  'rbd',
  'nvme',
  'nfs',
  'ssh',
  'http',
  'https',
  'gluster',
]);

/** The nodes that -blockdev names. */
class BlockGraph {
  readonly #nodes: ReadonlyMap<string, OptionValue>;
  readonly #translation: Translation;

  constructor(options: readonly QemuOption[], translation: Translation) {
    const values = options
      .filter(({ name }) => name === 'blockdev')
      .map(({ value }) => new OptionValue(value ?? '', 'driver'));
    this.#nodes = new Map(values.map((value) => [value.get('node-name') ?? '', value]));
    this.#translation = translation;
  }

  /** `known` gets the drives that are -blockdev's. */
  replaceWritable(options: readonly QemuOption[], known: Set<PrimaryDrive>): QemuOption[] {
    const { drives } = this.#translation.primary;
    const own = drives.filter(({ node, drive }) => drive === '' && this.#nodes.has(node));
    for (const drive of own) known.add(drive);
    const writable = new Map(own.filter(({ readOnly }) => !readOnly).map((drive) => [drive.node, drive]));
    const kept = this.#reachable(own.filter(({ readOnly }) => readOnly).map(({ node }) => node));
    const removed = this.#reachable([...writable.keys()]);
    return options.flatMap((option) => {
      if (option.name !== 'blockdev') return [option];
      const value = new OptionValue(option.value ?? '', 'driver');
      const name = value.get('node-name') ?? '';
      const drive = writable.get(name);
      if (drive) return this.#replacement(value, drive, option.value ?? '');
      if (kept.has(name) || !removed.has(name)) return [this.#keep(option, value, name)];
      return [];
    });
  }

  #children(value: OptionValue): string[] {
    const ends = /(^|\.)(file|backing|data-file|children\.\d+)$/;
    return value.keys().flatMap((key) => (ends.test(key) ? [value.get(key) ?? ''] : []));
  }

  #reachable(tops: string[]): Set<string> {
    const found = new Set<string>();
    const open = [...tops];
    for (let name = open.pop(); name !== undefined; name = open.pop()) {
      const value = this.#nodes.get(name);
      if (value === undefined || found.has(name)) continue;
      found.add(name);
      open.push(...this.#children(value));
    }
    return found;
  }

  #keep(option: QemuOption, value: OptionValue, name: string): QemuOption {
    const drive = this.#translation.primary.drives.find(({ node }) => this.#reachable([node]).has(name));
    if (!drive) return this.#refuseUnused(option, name);
    for (const key of ['filename', 'file.filename']) {
      const file = value.get(key);
      if (file === null) continue;
      const chosen = this.#translation.choices.disks.get(drive.id);
      value.set(key, this.#translation.need(`disk ${drive.id}, read-only`, chosen ?? file));
    }
    return { ...option, value: value.toString() };
  }

  #refuseUnused(option: QemuOption, name: string): QemuOption {
    this.#translation.refuse(
      `-blockdev ${option.value}`,
      `no disk of the VM uses node ${name} now`,
      'the VM was changed since it was started: restart it',
    );
    return option;
  }

  #replacement(top: OptionValue, drive: PrimaryDrive, text: string): QemuOption[] {
    const where = `-blockdev ${text}`;
    const driver = top.get('driver') ?? '';
    const encrypted = [...this.#reachable([drive.node])].some((name) => isEncrypted(this.#nodes.get(name)));
    if (encrypted && !isChosen(drive, this.#translation)) {
      refuseEncrypted(where, drive, text, this.#translation);
      return [];
    }
    if (!FORMATS.has(driver) && !PROTOCOLS.has(driver) && driver !== 'luks') {
      this.#translation.refuse(
        where,
        `block driver '${driver}' can't be taken over`,
        'use the image itself, and restart the VM',
      );
      return [];
    }
    const below = this.#nodes.get(top.get('file') ?? '');
    const storage = below ?? top;
    const storageName = below?.get('node-name') ?? nodeName(`storage-${drive.id}`);
    const file = newFile(drive, this.#nameOf(storage, top), this.#translation);
    const aio = storage.get('aio') ?? top.get('file.aio');
    const storageNode = {
      // A block device is QEMU's 'host_device'; which of the two FILE is, the standby's host knows.
      driver: file.startsWith('/dev/') ? 'host_device' : 'file',
      'node-name': storageName,
      filename: file,
      ...(aio !== null && { aio }),
      ...handedOn(storage),
    };
    const rawNode = {
      driver: 'raw',
      'node-name': drive.node,
      'read-only': false,
      file: storageName,
      ...handedOn(top),
    };
    return [storageNode, rawNode].map((node) => ({ name: 'blockdev', value: JSON.stringify(node) }));
  }

  #nameOf(storage: OptionValue, top: OptionValue): string {
    return storage.get('filename') ?? top.get('file.filename') ?? storage.toString();
  }
}

function isEncrypted(node: OptionValue | undefined): boolean {
  if (node === undefined) return false;
  return node.get('driver') === 'luks' || node.keys().some((key) => key.startsWith('encrypt.'));
}

/** QEMU's limit is 31 letters, of which not all are allowed. */
function nodeName(text: string): string {
  return text.replaceAll(/[^A-Za-z0-9._-]/g, '_').slice(0, 31);
}

/** QEMU's key=value syntax has `cache.direct=on`, JSON `true`: what is written here is JSON. */
function handedOn(value: OptionValue): Record<string, unknown> {
  const nested: Record<string, unknown> = {};
  for (const [key, member] of value.entries()) {
    const [group = '', part] = key.split('.');
    if (!NODE_KEYS.includes(group)) continue;
    const typed = group === 'cache' && typeof member === 'string' ? member === 'on' : member;
    if (part === undefined) nested[key] = typed;
    else nested[group] = { ...(nested[group] as object | undefined), [part]: typed };
  }
  return nested;
}
