/**
 * Every write of the guest to one disk, on its way to the disk, by QMP alone: a `blockdev-mirror` job that copies nothing by itself (sync=none) and
 * carries each write to our NBD export before the guest is told that it is done (copy-mode=write-blocking). QEMU writes the source first and the
 * target second (block/mirror.c, bdrv_mirror_top_do_write), so what the export has seen is on the source already.
 *
 * When the export goes away, the job ends with an error at the next write and the guest doesn't notice (on-target-error=report).
 */
import { type DiskExport, type NativeBinding, native as nativeBinding } from '../native/binding.ts';
import type { QmpClient } from '../qmp/client.ts';
import type { JobStatus } from '../qmp/commands.ts';
import type { Disk } from './disks.ts';
import { jobEvents } from './jobs.ts';
import { withNamedFd } from './named-fd.ts';

/** All names of jobs, nodes and exports begin so, by which the leftovers of an agent that died are told. */
export const DISK_PREFIX = 'colo-disk-';

const MIRRORS: ReadonlySet<JobStatus> = new Set(['created', 'running', 'paused', 'ready', 'standby']);

type Sockets = Pick<NativeBinding, 'streamSocketPair' | 'closeFd'>;

export class DiskMirror {
  static #started = 0;
  readonly #qmp: QmpClient;
  /** Of the job, of the target node, and with a suffix of the filter node. */
  readonly #name: string;
  #stopWatching: () => void = () => {};
  #phase: 'starting' | 'mirrors' | 'ended' = 'starting';

  /**
   * Begins under a running guest; `onEnded` is called when the job ends by anything but stop(): writes may have been missed from then on. QEMU tells
   * it in order with its replies, so that a `stop` that is answered afterwards finds it told. Throws QmpError with nothing left behind.
   */
  static async start(
    qmp: QmpClient,
    disk: Disk,
    target: DiskExport,
    onEnded: (reason: string) => void,
    native: Sockets = nativeBinding,
  ): Promise<DiskMirror> {
    DiskMirror.#started += 1;
    const mirror = new DiskMirror(qmp, `${DISK_PREFIX}${process.pid}-${DiskMirror.#started}`);
    await mirror.#addTarget(target, native);
    try {
      await mirror.#startJob(disk, onEnded);
    } catch (error) {
      await mirror.stop();
      throw error;
    }
    return mirror;
  }

  private constructor(qmp: QmpClient, name: string) {
    this.#qmp = qmp;
    this.#name = name;
  }

  /** Takes the mirror off: the guest's writes go to the disk alone again. */
  async stop(): Promise<void> {
    this.#phase = 'ended';
    this.#stopWatching();
    await cancelJob(this.#qmp, this.#name);
    await this.#qmp.execute('blockdev-del', { 'node-name': this.#name });
  }

  async #addTarget(target: DiskExport, native: Sockets): Promise<void> {
    const [ours, theirs] = native.streamSocketPair();
    target.serve(ours);
    try {
      await withNamedFd(this.#qmp, this.#name, theirs, () =>
        this.#qmp.execute('blockdev-add', {
          'node-name': this.#name,
          driver: 'nbd',
          server: { type: 'fd', str: this.#name },
        }),
      );
    } finally {
      native.closeFd(theirs);
    }
  }

  /** Its end may have been told together with its beginning. */
  #begin(disk: Disk): void {
    if (this.#phase === 'ended') throw new Error(`disk ${disk.id}: the mirror job ended at once`);
    this.#phase = 'mirrors';
  }

  async #startJob(disk: Disk, onEnded: (reason: string) => void): Promise<void> {
    const job = jobEvents(this.#qmp, this.#name);
    const ready = job.until((status) => status === 'ready' || !MIRRORS.has(status));
    this.#stopWatching = this.#qmp.onEvent('JOB_STATUS_CHANGE', ({ data }) => {
      if (data.id !== this.#name || MIRRORS.has(data.status)) return;
      const mirrored = this.#phase === 'mirrors';
      this.#phase = 'ended';
      if (mirrored)
        onEnded(`the mirror job of disk ${disk.id} has ended (somebody cancelled it, or the disk is gone)`);
    });
    try {
      await this.#qmp.execute('blockdev-mirror', {
        'job-id': this.#name,
        device: disk.node,
        target: this.#name,
        sync: 'none',
        'copy-mode': 'write-blocking',
        'on-target-error': 'report',
        'filter-node-name': `${this.#name}-filter`,
      });
      await ready;
      this.#begin(disk);
    } finally {
      job.stop();
    }
  }
}

/** Ends a job that may have ended by itself already. */
async function cancelJob(qmp: QmpClient, id: string): Promise<void> {
  const job = jobEvents(qmp, id);
  try {
    const gone = job.until((status) => status === 'null');
    const jobs = await qmp.execute('query-jobs');
    if (!jobs.some((candidate) => candidate.id === id)) return;
    await qmp.execute('block-job-cancel', { device: id, force: true });
    await gone;
  } finally {
    job.stop();
  }
}

/** What an agent that died has left: its jobs go on, with a target that nobody serves, until the guest's next write. */
export async function removeLeftMirrors(qmp: QmpClient): Promise<void> {
  const jobs = await qmp.execute('query-jobs');
  for (const { id } of jobs.filter((job) => job.id.startsWith(DISK_PREFIX))) await cancelJob(qmp, id);
  const nodes = await qmp.execute('query-named-block-nodes', { flat: true });
  for (const { 'node-name': node } of nodes) {
    if (node?.startsWith(DISK_PREFIX)) await qmp.execute('blockdev-del', { 'node-name': node });
  }
}
