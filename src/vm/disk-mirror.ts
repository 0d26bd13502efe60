/**
 * Every write of the guest to one disk, on its way to the disk, by QMP alone: a `blockdev-mirror` job that copies nothing by itself (sync=none) and
 * carries each write to our NBD export before the guest is told that it is done (copy-mode=write-blocking). QEMU writes the source first and the
 * target second (block/mirror.c, bdrv_mirror_top_do_write), so what the export has seen is on the source already.
 *
 * When the export goes away, the job pauses at the next write (on-target-error=stop) and the guest doesn't notice: its writes go to the disk alone,
 * with an attempt each that fails at once. The job must not end there (on-target-error=report), nor be cancelled under a running guest: a mirror job
 * that ends so frees its bitmap of writes in flight before those have ended, and each of them then clears its bits in what is somebody else's memory
 * (block/mirror.c, mirror_run's immediate_exit and active_write_settle; seen in QEMU 7.2.22, and still so in 10.1). While the VM stands there are none.
 */
import { type DiskExport, type NativeBinding, native as nativeBinding } from '../native/binding.ts';
import type { QmpClient } from '../qmp/client.ts';
import type { JobStatus } from '../qmp/commands.ts';
import type { Disk } from './disks.ts';
import { jobEvents } from './jobs.ts';
import { withNamedFd } from './named-fd.ts';

/** All names of jobs, nodes and exports begin so, by which the leftovers of an agent that died are told. */
export const DISK_PREFIX = 'colo-disk-';

/** Has `body` run while the VM stands and all of its I/O has ended, whether it stood before or not. */
export type WhileStopped = (body: () => Promise<void>) => Promise<void>;

const MIRRORS: ReadonlySet<JobStatus> = new Set(['created', 'running', 'paused', 'ready', 'standby']);

type Sockets = Pick<NativeBinding, 'streamSocketPair' | 'closeFd'>;

export class DiskMirror {
  static #started = 0;
  readonly #qmp: QmpClient;
  /** Of the job, of the target node, and with a suffix of the filter node. */
  readonly #name: string;
  #stopWatching: () => void = () => {};
  #phase: 'starting' | 'mirrors' | 'failed' = 'starting';

  /**
   * Begins under a running guest; `onFailed` is called when the job fails, or ends by anything but stop(): writes may have been missed from then on.
   * QEMU tells it in order with its replies, so that a `stop` that is answered afterwards finds it told. Throws with nothing left behind.
   */
  static async start(
    qmp: QmpClient,
    disk: Disk,
    target: DiskExport,
    { whileStopped, onFailed }: { whileStopped: WhileStopped; onFailed: (reason: string) => void },
    native: Sockets = nativeBinding,
  ): Promise<DiskMirror> {
    DiskMirror.#started += 1;
    const mirror = new DiskMirror(qmp, `${DISK_PREFIX}${process.pid}-${DiskMirror.#started}`);
    await mirror.#addTarget(target, native);
    try {
      await mirror.#startJob(disk, onFailed);
    } catch (error) {
      await mirror.stop(whileStopped);
      throw error;
    }
    return mirror;
  }

  private constructor(qmp: QmpClient, name: string) {
    this.#qmp = qmp;
    this.#name = name;
  }

  /** Every write comes to the export. */
  get mirrors(): boolean {
    return this.#phase === 'mirrors';
  }

  /** Takes the mirror off: the guest's writes go to the disk alone again. The VM stands for a moment, unless the job has ended by itself. */
  async stop(whileStopped: WhileStopped): Promise<void> {
    this.#phase = 'failed';
    this.#stopWatching();
    if (await exists(this.#qmp, this.#name)) await whileStopped(() => cancelJob(this.#qmp, this.#name));
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

  async #startJob(disk: Disk, onFailed: (reason: string) => void): Promise<void> {
    const job = jobEvents(this.#qmp, this.#name);
    const ready = job.until((status) => status === 'ready' || !MIRRORS.has(status));
    const failed = new Promise<never>((_, reject) => {
      this.#watch((reason) => {
        const mirrored = this.#phase === 'mirrors';
        this.#phase = 'failed';
        if (mirrored) onFailed(`the mirror job of disk ${disk.id} ${reason}`);
        else reject(new Error(`disk ${disk.id}: the mirror job ${reason}`));
      });
    });
    failed.catch(() => {}); // the command that starts the job may fail first
    try {
      await this.#qmp.execute('blockdev-mirror', {
        'job-id': this.#name,
        device: disk.node,
        target: this.#name,
        sync: 'none',
        'copy-mode': 'write-blocking',
        'on-target-error': 'stop',
        'filter-node-name': `${this.#name}-filter`,
      });
      await Promise.race([ready, failed]);
      // Its end may have been told together with its beginning.
      if (this.#phase === 'failed') await failed;
      this.#phase = 'mirrors';
    } finally {
      job.stop();
    }
  }

  #watch(onFailed: (reason: string) => void): void {
    const stops = [
      this.#qmp.onEvent('JOB_STATUS_CHANGE', ({ data }) => {
        if (data.id === this.#name && !MIRRORS.has(data.status))
          onFailed('has ended (somebody cancelled it, or the disk is gone)');
      }),
      this.#qmp.onEvent('BLOCK_JOB_ERROR', ({ data }) => {
        if (data.device === this.#name) onFailed('has lost its export');
      }),
    ];
    this.#stopWatching = () => {
      for (const stop of stops) stop();
    };
  }
}

async function exists(qmp: QmpClient, id: string): Promise<boolean> {
  return (await qmp.execute('query-jobs')).some((job) => job.id === id);
}

/** Ends a job that may have ended by itself already. The VM stands. */
async function cancelJob(qmp: QmpClient, id: string): Promise<void> {
  const job = jobEvents(qmp, id);
  try {
    const gone = job.until((status) => status === 'null');
    if (!(await exists(qmp, id))) return;
    await qmp.execute('block-job-cancel', { device: id, force: true });
    await gone;
  } finally {
    job.stop();
  }
}

/** What an agent that died has left: its jobs go on, with a target that nobody serves. */
export async function removeLeftMirrors(qmp: QmpClient, whileStopped: WhileStopped): Promise<void> {
  const left = (await qmp.execute('query-jobs')).filter((job) => job.id.startsWith(DISK_PREFIX));
  if (left.length > 0) {
    await whileStopped(async () => {
      for (const { id } of left) await cancelJob(qmp, id);
    });
  }
  const nodes = await qmp.execute('query-named-block-nodes', { flat: true });
  for (const { 'node-name': node } of nodes) {
    if (node?.startsWith(DISK_PREFIX)) await qmp.execute('blockdev-del', { 'node-name': node });
  }
}
