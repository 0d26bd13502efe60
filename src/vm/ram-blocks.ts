/**
 * The guest's RAM blocks and where QEMU has them mapped.
 *
 * QEMU prints host addresses in `info ramblock` from 8.0 on, and who may write from 8.2 on. Before, a block that is mapped in guest address space is found
 * by `info mtree -f` and `gpa2hva`. One that isn't (vga.vram before firmware has programmed the BAR) is found by its size among the
 * process's mappings: qemu_ram_mmap (util/mmap-alloc.c) gives every block a mapping of its own with an inaccessible guard page behind it.
 */
import type { QmpClient } from '../qmp/client.ts';
import { HostProcess, type Mapping } from './host-process.ts';

export interface RamBlock {
  name: string;
  hostAddress: bigint;
  sizeBytes: number;
}

interface ListedBlock {
  name: string;
  sizeBytes: number;
  /** Null where this QEMU doesn't print it. */
  hostAddress: bigint | null;
  readOnly: boolean | null;
}

export interface GuestRange {
  guestAddress: bigint;
  kind: string;
  region: string;
  offset: bigint;
}

export class RamBlocksError extends Error {
  override readonly name = 'RamBlocksError';
}

const PAGE_BYTES = 4096n;

/**
 * Every block that the guest or a device may write, in QEMU's order; ROM blocks are left out, since each QEMU builds its own. Blocks without a name
 * are not migrated by QEMU either (a memory backend that no device uses). Throws RamBlocksError when a block can't be found beyond doubt.
 */
export async function findRamBlocks(
  qmp: QmpClient,
  pid: number,
  process = new HostProcess(pid),
): Promise<RamBlock[]> {
  const listed = parseRamBlocks(await hmp(qmp, 'info ramblock')).filter((block) => block.name !== '');
  const complete = listed.every((block) => block.hostAddress !== null && block.readOnly !== null);
  const ranges = complete ? [] : parseSystemMemory(await hmp(qmp, 'info mtree -f'));
  const writable = listed.filter((block) => !(block.readOnly ?? isRom(block, ranges)));
  const located = new Map<string, bigint>();
  for (const block of writable) {
    const address = block.hostAddress ?? (await addressByRange(qmp, block, listed, ranges));
    if (address !== null) located.set(block.name, address);
  }
  const mappings = await process.mappings();
  return writable.map(({ name, sizeBytes }) => {
    const hostAddress = located.get(name) ?? addressBySize(name, sizeBytes, mappings, [...located.values()]);
    located.set(name, hostAddress);
    const block = { name, hostAddress, sizeBytes };
    assertMapped(block, mappings);
    return block;
  });
}

const ROM_NAMES = new Set(['pc.bios', 'pc.rom', 'isa-bios']);

/** Guest RAM shows up as `rom` too, where firmware has write-protected its shadow below 1 MiB: a ROM block has no other range. */
function isRom(block: ListedBlock, ranges: GuestRange[]): boolean {
  if (ROM_NAMES.has(block.name) || block.name.startsWith('/rom@') || block.name.endsWith('.rom')) return true;
  const own = ranges.filter((range) => belongsTo(range, block));
  return own.length > 0 && own.every((range) => range.kind === 'rom');
}

/** A block's name is its region's, behind the device's path if a device owns it: `0000:00:01.0/vga.vram`. */
export function belongsTo(range: GuestRange, block: { name: string }): boolean {
  return block.name === range.region || block.name.endsWith(`/${range.region}`);
}

/** Null when the block isn't mapped in guest address space, or another block's region has the same name. */
async function addressByRange(
  qmp: QmpClient,
  block: ListedBlock,
  listed: ListedBlock[],
  ranges: GuestRange[],
): Promise<bigint | null> {
  const range = ranges.find((candidate) => candidate.kind !== 'rom' && belongsTo(candidate, block));
  if (!range || listed.filter((other) => belongsTo(range, other)).length > 1) return null;
  const answer = await hmp(qmp, `gpa2hva 0x${range.guestAddress.toString(16)}`);
  const [, region, address] =
    /^Host virtual address for 0x[0-9a-f]+ \((.*)\) is 0x([0-9a-f]+)/.exec(answer) ?? [];
  // The guest may have moved the region since the list was made.
  if (address === undefined || region !== range.region) return null;
  return BigInt(`0x${address}`) - range.offset;
}

/** By the mapping of exactly this size that has a guard page behind it and is no block found already. */
function addressBySize(name: string, sizeBytes: number, mappings: Mapping[], taken: bigint[]): bigint {
  const candidates = mappings.filter((mapping, index) => {
    const sizeFits = mapping.end - mapping.start === BigInt(sizeBytes);
    const next = mappings[index + 1];
    const guarded = next?.start === mapping.end && next.permissions.startsWith('---');
    return sizeFits && guarded && isWritableData(mapping) && !taken.includes(mapping.start);
  });
  const [only] = candidates;
  if (only && candidates.length === 1) return only.start;
  const found = candidates.map(({ start }) => `0x${start.toString(16)}`).join(', ');
  throw new RamBlocksError(
    `cannot tell where QEMU has RAM block ${name} (${sizeBytes} bytes): ` +
      (only ? `the mappings at ${found} all fit` : 'no mapping fits') +
      '. It is not mapped in guest address space yet; attach once the guest has booted, or use QEMU 8.0 or newer',
  );
}

function isWritableData({ permissions }: Mapping): boolean {
  return permissions.startsWith('rw-');
}

/** Whoever listens on the QMP socket may not be QEMU itself, and HMP's text may be misread: look before other parts write there. */
function assertMapped({ name, hostAddress, sizeBytes }: RamBlock, mappings: Mapping[]): void {
  if (hostAddress % PAGE_BYTES !== 0n || BigInt(sizeBytes) % PAGE_BYTES !== 0n || sizeBytes === 0) {
    throw new RamBlocksError(
      `RAM block ${name}: address 0x${hostAddress.toString(16)} and size ${sizeBytes} are not whole pages`,
    );
  }
  const end = hostAddress + BigInt(sizeBytes);
  let at = hostAddress;
  for (const mapping of mappings) {
    if (isWritableData(mapping) && mapping.start <= at && at < mapping.end) at = mapping.end;
  }
  if (at < end) {
    throw new RamBlocksError(
      `RAM block ${name}: nothing is mapped read-write at 0x${at.toString(16)} of the process behind the QMP socket`,
    );
  }
}

/** Behind the name: anchored at the line's end only, so that no line takes longer than its length. */
const BLOCK_FIELDS =
  /(?:^|\s)\d+(?:\.\d+)? (?:[KMGTPE]i)?B\s+0x[0-9a-f]{16} 0x([0-9a-f]{16}) 0x[0-9a-f]{16}(?: 0x([0-9a-f]{16})(?: +(ro|rw))?)?$/;

/**
 * The table that `info ramblock` prints (ram_block_format in softmmu/physmem.c, later system/physmem.c). The size is what is used, not what is
 * reserved.
 */
export function parseRamBlocks(text: string): ListedBlock[] {
  const [header, ...lines] = text.split(/\r?\n/).filter((line) => line.trim() !== '');
  if (!header?.includes('Block Name'))
    throw new RamBlocksError(`cannot understand QEMU's list of RAM blocks: ${text.slice(0, 200)}`);
  return lines.map((line) => {
    const fields = BLOCK_FIELDS.exec(line);
    const [, used, address, access] = fields ?? [];
    if (fields === null || used === undefined) {
      throw new RamBlocksError(`cannot understand this line of QEMU's list of RAM blocks: ${line}`);
    }
    return {
      name: line.slice(0, fields.index).trim(),
      sizeBytes: Number(BigInt(`0x${used}`)),
      hostAddress: address === undefined ? null : BigInt(`0x${address}`),
      readOnly: access === undefined ? null : access === 'ro',
    };
  });
}

const SYSTEM_MEMORY = /^ AS "memory", root: system$/m;
const RANGE_LINE =
  /^ {2}([0-9a-f]{16})-[0-9a-f]{16} \(prio -?\d+, ([^)]+)\): (.*?)(?: @([0-9a-f]{16}))?(?: KVM)?$/gm;

/** The ranges of RAM and ROM in the flat view of the machine's memory, as `info mtree -f` prints it (mtree_print_flatview). */
export function parseSystemMemory(text: string): GuestRange[] {
  const view = text
    .replaceAll('\r', '')
    .split(/\n(?=FlatView #)/)
    .find((part) => SYSTEM_MEMORY.test(part));
  if (view === undefined)
    throw new RamBlocksError("cannot find the machine's memory in the answer to info mtree -f");
  return [...view.matchAll(RANGE_LINE)]
    .map(([, start, kind = '', region = '', offset = '0']) => ({
      guestAddress: BigInt(`0x${start}`),
      kind: kind.replace(/^nv-/, ''),
      region,
      offset: BigInt(`0x${offset}`),
    }))
    .filter(({ kind }) => kind === 'ram' || kind === 'rom' || kind === 'romd');
}

function hmp(qmp: QmpClient, line: string): Promise<string> {
  return qmp.execute('human-monitor-command', { 'command-line': line });
}
