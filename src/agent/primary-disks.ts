/** The protected VM's disks as the primary's effects need them: an NBD export and a mirror for each, and QEMU's NBD server while they are copied. */
import { randomBytes } from 'node:crypto';
import { type DiskExport, native, type PrimaryEngine } from '../native/binding.ts';
import type { Lineage } from '../protocol/messages.ts';
import type { QmpClient } from '../qmp/client.ts';
import { DiskMirror, removeLeftMirrors } from '../vm/disk-mirror.ts';
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
  /** A log is nearly full: a checkpoint is wanted. */
  onPressure(): void;
  /** QEMU says that a disk isn't mirrored any more: its writes are missed from now on, and the session's checkpoints are not whole. */
  onMirrorEnded(reason: string): void;
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
  /** Whether the export has seen every write since the standby's disk was last known. */
  complete: boolean;
}

export class PrimaryDisks {
  /** New with each agent: a standby's disk that carries it differs from the source only where the exports know of it. */
  readonly lineage: Lineage = randomBytes(16).toString('hex');
  /** The newest in which a VM ran on one of these disks, as their records say; 1 where nothing is recorded. */
  readonly generation: number;
  readonly #options: PrimaryDisksOptions;
  readonly #disks: Mirrored[];
  #listener: PrimaryDisksListener = {
    onPressure: () => {},
    onMirrorEnded: () => {},
    onExportFailed: () => {},
  };
  #copying: { failure: string | null; engine: PrimaryEngine } | null = null;
  #inSession = false;

  /** Takes off what an agent that died has left, and records the disks as this VM's. Adds nothing to QEMU yet. Throws DiskRecordError. */
  static async attach(qmp: QmpClient, options: PrimaryDisksOptions): Promise<PrimaryDisks> {
    await removeLeftMirrors(qmp);
    await removeLeftSources(qmp);
    const copied = copiedDisks(await findDisks(qmp), options.exceptions);
    const disks = new PrimaryDisks(qmp.peer.pid, copied, options);
    try {
      disks.record(disks.generation);
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
      complete: false,
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

  /** INVARIANT 4: durable before a standby is told of this generation. Throws DiskRecordError. */
  record(generation: number): void {
    const { vm } = this.#options;
    for (const { disk, file } of this.#disks) {
      writeRecord(file, {
        vm,
        disk: disk.id,
        role: 'source',
        generation,
        lineage: this.lineage,
        bootId: bootId(),
      });
    }
  }

  /**
   * Brings the standby's disks, of these lineages, up to date; from here on writes belong to epochs. `copy` has the engine do it. Rejects with the
   * reason when a disk fails meanwhile.
   */
  async sync(
    qmp: QmpClient,
    engine: PrimaryEngine,
    lineages: readonly (Lineage | null)[],
    copy: (allDiffer: boolean[]) => Promise<void>,
  ): Promise<void> {
    await this.#requireUnchanged(qmp);
    if (lineages.length !== this.#disks.length)
      throw new Error(`the standby names ${lineages.length} disks, ${this.#disks.length} are copied`);
    const copying = { failure: null as string | null, engine };
    this.#copying = copying;
    this.#inSession = true;
    try {
      for (const mirrored of this.#disks) await this.#mirror(qmp, mirrored);
      const allDiffer = this.#disks.map(
        ({ complete }, index) => !complete || lineages[index] !== this.lineage,
      );
      const source = await DiskSource.open(qmp, this.#disks);
      try {
        for (const mirrored of this.#disks) mirrored.complete = true;
        await copy(allDiffer);
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

  /** The engine has ended the disks' session, too. */
  sessionEnded(): void {
    this.#inSession = false;
  }

  /** The guest's writes go to its disks alone again. */
  async detach(): Promise<void> {
    for (const mirrored of this.#disks) {
      const { mirror } = mirrored;
      mirrored.mirror = null;
      await mirror?.stop();
    }
  }

  close(): void {
    for (const mirrored of this.#disks) mirrored.export.close();
  }

  status(): DiskStatus[] {
    return this.#disks.map(({ disk, export: target, mirror }) => {
      const { loggedBytes, writes, differingBytes } = statsOf(target, disk.sizeBytes);
      const state = this.#copying ? 'copying' : this.#inSession && mirror ? 'mirrored' : 'absent';
      return { id: disk.id, state, sizeBytes: disk.sizeBytes, differingBytes, loggedBytes, writes };
    });
  }

  /** Disks that were plugged in or out since have no export, or one that nobody writes to. */
  async #requireUnchanged(qmp: QmpClient): Promise<void> {
    const ids = copiedDisks(await findDisks(qmp), this.#options.exceptions).map(({ id }) => id);
    const known = this.#disks.map(({ disk }) => disk.id);
    const added = ids.filter((id) => !known.includes(id));
    const gone = known.filter((id) => !ids.includes(id));
    if (added.length + gone.length === 0) return;
    const changes = [...added.map((id) => `${id} is new`), ...gone.map((id) => `${id} is gone`)].join(', ');
    throw new Error(
      `the VM's disks have changed since the agent attached (${changes}): give the standby the same, then restart this agent`,
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
    if (mirrored.mirror) return;
    // Whatever the guest wrote while there was no mirror is known to nobody.
    mirrored.complete = false;
    mirrored.mirror = await DiskMirror.start(qmp, mirrored.disk, mirrored.export, (reason) => {
      const { mirror } = mirrored;
      mirrored.mirror = null;
      mirrored.complete = false;
      this.#fail(reason, () => this.#listener.onMirrorEnded(reason));
      mirror?.stop().catch((error: Error) => {
        // Its node is without use now, and the next agent removes it.
        this.#options.log.warn('a mirror could not be taken off QEMU', { error: error.message });
      });
    });
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
