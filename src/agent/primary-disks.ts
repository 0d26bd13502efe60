/** The protected VM's disks as the primary's effects need them: an NBD export and a mirror for each, and QEMU's NBD server while they are copied. */
import { randomBytes } from 'node:crypto';
import { type DiskExport, native, type PrimaryEngine } from '../native/binding.ts';
import type { Lineage } from '../protocol/messages.ts';
import type { QmpClient } from '../qmp/client.ts';
import { DiskMirror, removeLeftMirrors, type WhileStopped } from '../vm/disk-mirror.ts';
import { bootId, readRecord, writeRecord } from '../vm/disk-record.ts';
import { DiskSource, removeLeftSources } from '../vm/disk-source.ts';
import { copiedDisks, type Disk, type DiskExceptions, diskFile, findDisks } from '../vm/disks.ts';
import type { Log } from './log.ts';
import type { DiskStatus } from './status.ts';

export interface PrimaryDisksOptions {
  vm: string;
  /** For each disk. */
  bufferBytes: number;
  exceptions: DiskExceptions;
  log: Log;
}

export interface PrimaryDisksListener {
  /** Between the checkpoints. */
  whileStopped: WhileStopped;
  /** A log is nearly full: a checkpoint is wanted. */
  onPressure(): void;
  /** QEMU says that a disk isn't mirrored any more: its writes are missed from now on, and the session's checkpoints are not whole. */
  onMirrorFailed(reason: string): void;
  /** The same, as a disk's export sees it: QEMU may be dead, or the log has run over. No checkpoint is sent any more. */
  onExportFailed(reason: string): void;
}

/** A share of the buffer from which on a checkpoint is asked for. */
const PRESSURE = 0.75;

interface Mirrored {
  disk: Disk;
  /** Where its record lies. */
  file: string;
  export: DiskExport;
  mirror: DiskMirror | null;
  /** The state of a standby's disk that was confirmed last, if the export has seen every write since. */
  known: Lineage | null;
}

export class PrimaryDisks {
  /** New with each agent; stands in the records. */
  readonly owner = randomBytes(16).toString('hex');
  /** The newest in which a VM ran on one of these disks, as their records say; 1 where nothing is recorded. */
  readonly generation: number;
  readonly #options: PrimaryDisksOptions;
  readonly #disks: Mirrored[];
  #listener: PrimaryDisksListener = {
    whileStopped: () => Promise.reject(new Error('no VM to stop')),
    onPressure: () => {},
    onMirrorFailed: () => {},
    onExportFailed: () => {},
  };
  #copying: { failure: string | null; engine: PrimaryEngine } | null = null;
  #inSession = false;
  /** What the standby's disks become when the session's first checkpoint is confirmed. */
  #lineage: Lineage | null = null;
  #recorded = 0;
  /** What there was to say when they were closed. */
  #last: DiskStatus[] | null = null;

  /** Takes off what an agent that died has left, and records the disks as this VM's. Adds nothing to QEMU yet. Throws DiskRecordError. */
  static async attach(
    qmp: QmpClient,
    whileStopped: WhileStopped,
    options: PrimaryDisksOptions,
  ): Promise<PrimaryDisks> {
    await removeLeftMirrors(qmp, whileStopped);
    await removeLeftSources(qmp);
    const copied = copiedDisks(await findDisks(qmp), options.exceptions);
    const disks = new PrimaryDisks(qmp.peer.pid, copied, options);
    try {
      await disks.record(disks.generation);
    } catch (error) {
      disks.close();
      throw error;
    }
    return disks;
  }

  private constructor(pid: number, disks: readonly Disk[], options: PrimaryDisksOptions) {
    this.#options = options;
    const files = disks.map((disk) => diskFile(pid, disk));
    this.generation = Math.max(1, ...files.map((file) => this.#recordedGeneration(file)));
    this.#disks = disks.map((disk, index) => ({
      disk,
      file: files[index] as string,
      export: this.#makeExport(disk, options.bufferBytes),
      mirror: null,
      known: null,
    }));
  }

  /** For the engine, in the order in which HELLO describes them. */
  get exports(): DiskExport[] {
    return this.#disks.map((mirrored) => mirrored.export);
  }

  get any(): boolean {
    return this.#disks.length > 0;
  }

  listen(listener: PrimaryDisksListener): void {
    this.#listener = listener;
  }

  /** INVARIANT 4: durable before a standby is told of this generation, and as soon as the VM goes on alone in it. Rejects with DiskRecordError. */
  async record(generation: number): Promise<void> {
    if (generation === this.#recorded) return;
    const { vm } = this.#options;
    for (const { disk, file } of this.#disks) {
      await writeRecord(file, {
        vm,
        disk: disk.id,
        role: 'source',
        generation,
        lineage: this.owner,
        bootId: bootId(),
      });
    }
    this.#recorded = generation;
  }

  /**
   * Brings the standby's disks, of these lineages, up to date; from here on writes belong to epochs, and with the first confirmed() the disks are
   * of `lineage`. `copy` has the engine do it. Rejects with the reason when a disk fails meanwhile.
   */
  async sync(
    qmp: QmpClient,
    engine: PrimaryEngine,
    { lineages, lineage }: { lineages: readonly (Lineage | null)[]; lineage: Lineage },
    copy: (allDiffer: boolean[]) => Promise<void>,
  ): Promise<void> {
    const copying = { failure: null as string | null, engine };
    this.#copying = copying;
    this.#inSession = true;
    this.#lineage = lineage;
    try {
      if (lineages.length !== this.#disks.length)
        throw new Error(`the standby names ${lineages.length} disks, ${this.#disks.length} are copied`);
      await this.#requireUnchanged(qmp);
      for (const mirrored of this.#disks) await this.#mirror(qmp, mirrored);
      const source = await DiskSource.open(qmp, this.#disks);
      try {
        // INVARIANT 3: only of a state that this very agent has seen confirmed, and of every write since, can it tell what differs.
        await copy(this.#disks.map(({ known }, index) => known === null || known !== lineages[index]));
      } finally {
        await source.close();
      }
      if (copying.failure !== null) throw new Error(copying.failure);
    } catch (error) {
      throw copying.failure === null ? error : new Error(copying.failure);
    } finally {
      this.#copying = null;
    }
  }

  /** A checkpoint of the session has been loaded. */
  confirmed(): void {
    for (const mirrored of this.#disks) mirrored.known = this.#lineage;
  }

  /** The engine has ended the disks' session, too. */
  sessionEnded(): void {
    this.#inSession = false;
    this.#lineage = null;
  }

  /** The guest's writes go to its disks alone again. */
  async detach(): Promise<void> {
    for (const mirrored of this.#disks) await this.#takeOff(mirrored);
  }

  /** `status` may still be asked for: an agent has things to say while it ends. */
  close(): void {
    this.#last ??= this.status();
    for (const mirrored of this.#disks) mirrored.export.close();
  }

  status(): DiskStatus[] {
    if (this.#last !== null) return this.#last;
    return this.#disks.map(({ disk, export: target, mirror }) => {
      const { loggedBytes, writes, differingBytes } = statsOf(target, disk.sizeBytes);
      const state = this.#copying ? 'copying' : this.#inSession && mirror ? 'mirrored' : 'absent';
      return { id: disk.id, state, sizeBytes: disk.sizeBytes, differingBytes, loggedBytes, writes };
    });
  }

  /** A disk that is new has no export; one that was given another image would be mirrored from the old one. */
  async #requireUnchanged(qmp: QmpClient): Promise<void> {
    const now = copiedDisks(await findDisks(qmp), this.#options.exceptions);
    const changes = now
      .filter(({ id }) => !this.#disks.some(({ disk }) => disk.id === id))
      .map(({ id }) => `${id} is new`);
    for (const { disk, mirror } of this.#disks) {
      const found = now.find(({ id }) => id === disk.id);
      if (!found) changes.push(`${disk.id} is gone`);
      // Under a mirror QEMU lets nobody change it, and shows the mirror's node in its place.
      else if (
        !mirror &&
        (found.node !== disk.node || found.file !== disk.file || found.sizeBytes !== disk.sizeBytes)
      )
        changes.push(`${disk.id} has another image or size`);
    }
    if (changes.length === 0) return;
    throw new Error(
      `the VM's disks have changed since the agent attached (${changes.join(', ')}): give the standby the same, then restart this agent`,
    );
  }

  #recordedGeneration(file: string): number {
    const record = readRecord(file);
    if (record !== null && record.role !== 'source') {
      const { role, generation } = record;
      this.#options.log.warn('the VM runs on a disk that was a standby', { file, role, generation });
    }
    return record?.generation ?? 0;
  }

  #makeExport(disk: Disk, limitBytes: number): DiskExport {
    return new native.DiskExport({
      id: disk.id,
      sizeBytes: disk.sizeBytes,
      limitBytes,
      pressureBytes: Math.floor(limitBytes * PRESSURE),
      onPressure: () => this.#listener.onPressure(),
      onFailed: (reason) => this.#fail(reason, () => this.#listener.onExportFailed(reason)),
    });
  }

  async #mirror(qmp: QmpClient, mirrored: Mirrored): Promise<void> {
    if (mirrored.mirror?.mirrors && mirrored.export.stats().clients > 0) return;
    await this.#takeOff(mirrored);
    // Whatever the guest wrote while there was no mirror is known to nobody.
    mirrored.known = null;
    mirrored.mirror = await DiskMirror.start(qmp, mirrored.disk, mirrored.export, {
      whileStopped: this.#listener.whileStopped,
      // It is taken off when the next session begins, or at the end: the VM may be in the middle of a checkpoint now.
      onFailed: (reason) => {
        mirrored.known = null;
        this.#fail(reason, () => this.#listener.onMirrorFailed(reason));
      },
    });
  }

  async #takeOff(mirrored: Mirrored): Promise<void> {
    const { mirror } = mirrored;
    mirrored.mirror = null;
    await mirror?.stop(this.#listener.whileStopped);
  }

  /** A copy in progress fails with the reason; a session with checkpoints is told of it. */
  #fail(reason: string, tell: () => void): void {
    if (this.#copying) {
      this.#copying.failure ??= reason;
      this.#copying.engine.disconnect();
    } else if (this.#inSession) tell();
  }
}

const BLOCK_BYTES = 64 * 1024;

function statsOf(
  target: DiskExport,
  sizeBytes: number,
): { loggedBytes: number; writes: number; differingBytes: number } {
  const { loggedBytes, writes, differingBlocks } = target.stats();
  return { loggedBytes, writes, differingBytes: Math.min(sizeBytes, differingBlocks * BLOCK_BYTES) };
}
