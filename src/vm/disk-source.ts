/**
 * Reading the guest's disks while it runs, through QEMU's own NBD server: whatever their format and cache, what is read is what the guest has
 * written. Only while a standby's disks are brought up to date; QEMU has one NBD server, and somebody else may need it.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { type DiskExport, type NativeBinding, native as nativeBinding } from '../native/binding.ts';
import type { QmpClient } from '../qmp/client.ts';
import { QmpError } from '../qmp/error.ts';
import { DISK_PREFIX } from './disk-mirror.ts';
import type { Disk } from './disks.ts';
import { withNamedFd } from './named-fd.ts';

export const NBD_IN_USE =
  "QEMU's NBD server is in use by somebody else, and the disks are read through it while they are copied: end that use (nbd-server-stop)";

type Sockets = Pick<NativeBinding, 'listenUnix' | 'connectUnix' | 'closeFd'>;

export interface SourceDisk {
  disk: Disk;
  export: DiskExport;
}

export class DiskSource {
  static #opened = 0;
  readonly #qmp: QmpClient;
  readonly #ids: string[] = [];
  readonly #disks: readonly SourceDisk[];

  /** Every disk's export can read its source when this resolves. Throws with nothing left behind. */
  static async open(
    qmp: QmpClient,
    disks: readonly SourceDisk[],
    native: Sockets = nativeBinding,
  ): Promise<DiskSource> {
    DiskSource.#opened += 1;
    const prefix = `${DISK_PREFIX}${process.pid}-source-${DiskSource.#opened}`;
    const connections = await startServer(qmp, prefix, disks.length, native);
    const source = new DiskSource(qmp, disks);
    try {
      for (const [index, { disk, export: target }] of disks.entries()) {
        const id = `${prefix}-${index}`;
        await qmp.execute('block-export-add', {
          type: 'nbd',
          id,
          'node-name': disk.node,
          name: id,
          writable: false,
        });
        source.#ids.push(id);
        const connection = connections[0] as number;
        await qmp.execute('getfd', { fdname: clientName(id) }, [connection]);
        connections.shift();
        await target.connectSource(connection, id);
      }
    } catch (error) {
      for (const fd of connections) native.closeFd(fd);
      await source.close();
      throw error;
    }
    return source;
  }

  private constructor(qmp: QmpClient, disks: readonly SourceDisk[]) {
    this.#qmp = qmp;
    this.#disks = disks;
  }

  async close(): Promise<void> {
    try {
      for (const id of this.#ids) await removeExport(this.#qmp, id);
    } finally {
      for (const { export: target } of this.#disks) target.closeSource();
      await this.#qmp.execute('nbd-server-stop');
    }
  }
}

/**
 * QEMU is given a socket that listens in a folder of ours, since it may be another user's process that can open no path of ours; nobody else can
 * connect to it, and its path is gone at once. Returns the connections, which QEMU accepts when it comes to it.
 */
async function startServer(
  qmp: QmpClient,
  fdname: string,
  count: number,
  native: Sockets,
): Promise<number[]> {
  const folder = mkdtempSync(path.join(tmpdir(), 'colo-agent-'));
  const connections: number[] = [];
  try {
    const socketPath = path.join(folder, 'nbd');
    const listener = native.listenUnix(socketPath);
    try {
      for (let i = 0; i < count; i++) connections.push(native.connectUnix(socketPath));
      await withNamedFd(qmp, fdname, listener, () =>
        qmp.execute('nbd-server-start', { addr: { type: 'fd', data: { str: fdname } } }),
      );
    } finally {
      native.closeFd(listener);
    }
    return connections;
  } catch (error) {
    for (const fd of connections) native.closeFd(fd);
    if (error instanceof QmpError && /already running/.test(error.desc)) {
      throw new Error(NBD_IN_USE);
    }
    throw error;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/**
 * QEMU holds our end of each connection, too: QEMU 7.2.22 aborts when a client leaves an export that an iothread serves (blockdev-nbd.c,
 * nbd_blockdev_client_closed), so a connection must not end before its export is deleted, not even with the agent (invariant 7).
 */
function clientName(id: string): string {
  return `${id}-client`;
}

/** An export lives on until its last client has been served; only then can the server be stopped for good. */
async function removeExport(qmp: QmpClient, id: string): Promise<void> {
  let cancel = () => {};
  const deleted = new Promise<void>((resolve) => {
    const stops = [
      qmp.onEvent('BLOCK_EXPORT_DELETED', ({ data }) => {
        if (data.id === id) resolve();
      }),
      qmp.onClosed(() => resolve()),
    ];
    cancel = () => {
      for (const stop of stops) stop();
    };
  });
  try {
    await qmp.execute('block-export-del', { id, mode: 'hard' });
    await deleted;
    await qmp.execute('closefd', { fdname: clientName(id) }).catch((error) => {
      // Not found: its agent died before it had connected.
      if (!(error instanceof QmpError)) throw error;
    });
  } finally {
    cancel();
  }
}

/** Of an agent that died. Its exports tell that the server, too, is its. */
export async function removeLeftSources(qmp: QmpClient): Promise<void> {
  const exports = await qmp.execute('query-block-exports');
  const ours = exports.filter(({ id }) => id.startsWith(DISK_PREFIX));
  for (const { id } of ours) await removeExport(qmp, id);
  if (ours.length > 0) await qmp.execute('nbd-server-stop');
}
