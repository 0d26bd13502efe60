import type { QmpClient } from '../qmp/client.ts';
import { copiedDisks, type DiskExceptions, findDisks } from './disks.ts';

/** What the guest has written to the disks that a protection would copy, since QEMU began. */
export async function bytesWrittenToDisks(qmp: QmpClient, exceptions: DiskExceptions): Promise<number> {
  const copied = new Set(copiedDisks(await findDisks(qmp), exceptions).map(({ device }) => device));
  const stats = await qmp.execute('query-blockstats');
  return stats
    .filter(({ qdev }) => qdev !== undefined && copied.has(qdev))
    .reduce((sum, { stats: { wr_bytes: bytes } }) => sum + bytes, 0);
}
