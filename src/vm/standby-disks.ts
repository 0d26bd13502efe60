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
}

export interface PrimaryOfDisks {
  vm: string;
  generation: number;
  lineage: string;
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

  /** In the order of the primary's copied disks, since the last accept(). */
  get disks(): readonly StandbyDisk[] {
    return this.#open;
  }

  /**
   * Opens what this primary copies. Returns what stands against it, each with what to do, or nothing: then all are open and as long as the primary's (a
   * file that is shorter is made longer). Nothing on a disk is changed.
   */
  async accept(primary: PrimaryOfDisks): Promise<string[]> {
    this.close();
    const problems: string[] = [];
    const own = await findDisks(this.#qmp);
    for (const wanted of primary.disks.filter(({ copy }) => copy === 'copied')) {
      const disk = own.find(({ id }) => id === wanted.id);
      // That it is missing is the description's to tell.
      if (!disk) continue;
      const problem = await this.#accept(disk, wanted, primary);
      if (problem !== null) problems.push(`disk ${disk.id}: ${problem}`);
    }
    if (problems.length > 0) this.close();
    return problems;
  }

  /** The lineage of each disk's content as far as it can be told; null: it has to be compared with the source, block by block. */
  lineages(): (string | null)[] {
    const boot = bootId();
    return this.#open.map(({ file }) => {
      const record = readRecord(file);
      // What was written and not yet on the medium when the host went down is lost, and nobody knows which blocks these are.
      return record !== null && record.role !== 'source' && record.bootId === boot ? record.lineage : null;
    });
  }

  /** INVARIANT 4: from here on the disks say that they are this primary's copies, and no newer ones. Throws DiskRecordError. */
  record(role: DiskRecord['role'], { vm, generation, lineage }: Omit<PrimaryOfDisks, 'disks'>): void {
    for (const { id, file } of this.#open) {
      writeRecord(file, { vm, disk: id, role, generation, lineage, bootId: bootId() });
    }
  }

  close(): void {
    for (const { fd } of this.#open) closeSync(fd);
    this.#open = [];
  }

  async #accept(disk: Disk, wanted: DescribedDisk, primary: PrimaryOfDisks): Promise<string | null> {
    if (disk.readOnly) return `${disk.file} is read-only here: start the standby with it writable`;
    if (disk.format !== 'raw')
      return `${disk.file} is ${disk.format} here: the standby's disks must be raw (a file or a block device)`;
    const file = diskFile(this.#qmp.peer.pid, disk);
    let fd: number;
    try {
      // On a block device O_EXCL fails when it is mounted or part of another one (open(2)); QEMU doesn't claim it so. Only a look: an earlier
      // session's engine may still have it open.
      closeSync(openSync(file, constants.O_RDWR | constants.O_EXCL));
      fd = openSync(file, constants.O_RDWR);
    } catch (error) {
      const inUse = (error as NodeJS.ErrnoException).code === 'EBUSY';
      return inUse
        ? `${file} is in use on this host (mounted, or part of another device)`
        : `can't open ${file}: ${(error as Error).message}`;
    }
    const opened = { id: disk.id, file, sizeBytes: wanted.sizeBytes, fd };
    this.#open.push(opened);
    const refused = this.#refuseContent(opened, primary);
    return refused ?? (await this.#fit(disk, wanted.sizeBytes));
  }

  #refuseContent({ id, file, fd }: StandbyDisk, primary: PrimaryOfDisks): string | null {
    let record: DiskRecord | null;
    try {
      record = readRecord(file);
    } catch (error) {
      return (error as Error).message;
    }
    if (record?.role === 'source' && record.lineage === primary.lineage)
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

  async #fit(disk: Disk, sizeBytes: number): Promise<string | null> {
    if (disk.sizeBytes === sizeBytes) return null;
    const differs = `${disk.file} has ${disk.sizeBytes} bytes here, the primary's disk ${sizeBytes}`;
    if (disk.sizeBytes > sizeBytes) return `${differs}: give the standby one of the same size`;
    try {
      await this.#qmp.execute('block_resize', { 'node-name': disk.node, size: sizeBytes });
      return null;
    } catch (error) {
      return `${differs}, and it can't be made longer: ${(error as Error).message}`;
    }
  }
}

/** A block device can't tell its holes: one that is longer needs a person's word. */
const PROBE_BYTES_MAX = 1 << 30;
