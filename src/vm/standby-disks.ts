/**
 * The disks of a standby's QEMU, which is paused and has them open: raw files or block devices that the agent writes through descriptors of its own.
 * Raw is what makes that possible: what the guest sees is the file, byte for byte, whatever QEMU's cache mode.
 */
import { closeSync, constants, openSync } from 'node:fs';
import { native } from '../native/binding.ts';
import type { QmpClient } from '../qmp/client.ts';
import type { DescribedDisk } from './description.ts';
import { bootId, type DiskRecord, readRecord, writeRecord } from './disk-record.ts';
import { type Disk, diskFile, findDisks } from './disks.ts';

export interface StandbyDisk {
  id: string;
  file: string;
  sizeBytes: number;
  fd: number;
  /** It was shorter than the primary's: somebody has made it anew, whatever its record says. */
  lengthened: boolean;
}

export interface PrimaryOfDisks {
  vm: string;
  generation: number;
  /** What the records beside its own disks carry. */
  owner: string | null;
  /** As HELLO describes them: those with `copy: 'copied'` count here, in their order. */
  disks: readonly DescribedDisk[];
}

export class StandbyDisks {
  readonly #qmp: QmpClient;
  /** Disks that may be overwritten whatever is on them, by id. */
  readonly #overwrite: readonly string[];
  #open: StandbyDisk[] = [];

  constructor(qmp: QmpClient, overwrite: readonly string[]) {
    this.#qmp = qmp;
    this.#overwrite = overwrite;
  }

  /** In the order of the primary's copied disks, since an accept() that found nothing against them. */
  get disks(): readonly StandbyDisk[] {
    return this.#open;
  }

  /**
   * Opens what this primary copies. Returns what stands against it, each with what to do; then those of an earlier primary stay open, whose checkpoint
   * may still be taken over. Nothing: all are open and as long as the primary's (files that are shorter are made longer). No content is changed.
   */
  async accept(primary: PrimaryOfDisks): Promise<string[]> {
    const opened: StandbyDisk[] = [];
    let problems: string[] = [];
    try {
      problems = await this.#openAll(primary, opened);
    } catch (error) {
      problems = [(error as Error).message];
    }
    if (problems.length > 0) {
      for (const { fd } of opened) closeSync(fd);
      return problems;
    }
    this.close();
    this.#open = opened;
    return [];
  }

  /** The lineage of each disk's content as far as it can be told; null: it has to be compared with the source, block by block. */
  lineages(): (string | null)[] {
    const boot = bootId();
    return this.#open.map(({ file, lengthened }) => {
      const record = lengthened ? null : readRecord(file);
      // What was written and not yet on the medium when the host went down is lost, and nobody knows which blocks these are.
      return record !== null && record.role !== 'source' && record.bootId === boot ? record.lineage : null;
    });
  }

  /**
   * INVARIANT 4: from here on the disks say whose they are and of which generation. `lineages` has one for each disk, or is all of theirs. Rejects
   * with DiskRecordError.
   */
  async record(
    role: DiskRecord['role'],
    { vm, generation }: Pick<PrimaryOfDisks, 'vm' | 'generation'>,
    lineages: readonly (string | null)[] | string,
  ): Promise<void> {
    for (const [index, { id, file }] of this.#open.entries()) {
      const lineage = typeof lineages === 'string' ? lineages : (lineages[index] ?? null);
      await writeRecord(file, { vm, disk: id, role, generation, lineage, bootId: bootId() });
    }
  }

  close(): void {
    for (const { fd } of this.#open) closeSync(fd);
    this.#open = [];
  }

  async #openAll(primary: PrimaryOfDisks, opened: StandbyDisk[]): Promise<string[]> {
    const own = await findDisks(this.#qmp);
    const problems: string[] = [];
    const lengthen: (() => Promise<string | null>)[] = [];
    for (const wanted of primary.disks.filter(({ copy }) => copy === 'copied')) {
      const disk = own.find(({ id }) => id === wanted.id);
      // That it is missing is the description's to tell.
      if (!disk) continue;
      const problem = this.#openDisk(disk, wanted, primary, opened);
      if (problem !== null) problems.push(`disk ${disk.id}: ${problem}`);
      lengthen.push(() => this.#lengthen(disk, wanted.sizeBytes));
    }
    for (const each of problems.length === 0 ? lengthen : []) {
      const problem = await each();
      if (problem !== null) problems.push(problem);
    }
    return problems;
  }

  #openDisk(
    disk: Disk,
    wanted: DescribedDisk,
    primary: PrimaryOfDisks,
    opened: StandbyDisk[],
  ): string | null {
    const unfit = unfitForCopy(disk);
    if (unfit !== null) return unfit;
    if (disk.sizeBytes > wanted.sizeBytes)
      return `${differentSize(disk, wanted.sizeBytes)}: give the standby one of the same size`;
    const file = diskFile(this.#qmp.peer.pid, disk);
    try {
      // On a block device O_EXCL fails when it is mounted or part of another one (open(2)); QEMU doesn't claim it so. Only a look: an earlier
      // session's engine may still have it open.
      closeSync(openSync(file, constants.O_RDWR | constants.O_EXCL));
      const lengthened = disk.sizeBytes < wanted.sizeBytes;
      const fd = openSync(file, constants.O_RDWR);
      opened.push({ id: disk.id, file, sizeBytes: wanted.sizeBytes, fd, lengthened });
    } catch (error) {
      const inUse = (error as NodeJS.ErrnoException).code === 'EBUSY';
      return inUse
        ? `${file} is in use on this host (mounted, or part of another device)`
        : `can't open ${file}: ${(error as Error).message}`;
    }
    return this.#refuseContent(opened.at(-1) as StandbyDisk, primary);
  }

  #refuseContent({ id, file, fd }: StandbyDisk, primary: PrimaryOfDisks): string | null {
    let record: DiskRecord | null;
    try {
      record = readRecord(file);
    } catch (error) {
      return (error as Error).message;
    }
    if (record?.role === 'source' && record.lineage !== null && record.lineage === primary.owner)
      return `${file} is the very disk that the primary runs on: if both hosts reach one disk, say --shared-disk ${id} on the primary`;
    if (this.#overwrite.includes(id)) return null;
    const remedy = `to give its content up: --overwrite-disk ${id} on the secondary`;
    if (record === null)
      return native.readsAsZeros(fd, PROBE_BYTES_MAX)
        ? null
        : `${file} holds data of unknown origin (${remedy})`;
    if (record.vm !== primary.vm || record.disk !== id)
      return `${file} is disk ${record.disk} of VM ${record.vm} (${remedy})`;
    const { role, generation } = record;
    if (generation > primary.generation || (role === 'source' && generation === primary.generation)) {
      const what = role === 'source' ? 'the VM ran on it in generation' : 'it is a copy of generation';
      return `${file} isn't the older one: ${what} ${generation}, and the primary's is ${primary.generation} (${remedy})`;
    }
    return null;
  }

  async #lengthen(disk: Disk, sizeBytes: number): Promise<string | null> {
    if (disk.sizeBytes === sizeBytes) return null;
    try {
      await this.#qmp.execute('block_resize', { 'node-name': disk.node, size: sizeBytes });
      return null;
    } catch (error) {
      return `disk ${disk.id}: ${differentSize(disk, sizeBytes)}, and it can't be made longer: ${(error as Error).message}`;
    }
  }
}

/** Why a standby's disk can't be a copy, whatever the primary's is; null: it can. */
export function unfitForCopy({ file, format, readOnly }: Disk): string | null {
  if (readOnly) return `${file} is read-only here: start the standby with it writable`;
  return format === 'raw'
    ? null
    : `${file} is ${format} here: the standby's disks must be raw (a file or a block device)`;
}

function differentSize({ file, sizeBytes }: Disk, wantedBytes: number): string {
  return `${file} has ${sizeBytes} bytes here, the primary's disk ${wantedBytes}`;
}

/** The look holds everything else up. A block device can't tell its holes: one that is longer needs a person's word. */
const PROBE_BYTES_MAX = 64 << 20;
