/**
 * What is known of a disk that is protected, in a file beside it: whose it is, which generation wrote it, and from which source its content comes.
 * A standby overwrites a disk only when its record says that it is the older one; so the disk of a host that comes back after a failover is
 * brought up to date, and never the newer one by a mistake.
 */
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, statSync } from 'node:fs';
import path from 'node:path';
import { replaceFile } from './durable-file.ts';

export interface DiskRecord {
  vm: string;
  disk: string;
  /**
   * `source`: a VM ran on it in `generation`. `copying`: a standby's, not whole: content of `lineage` and newer blocks. `copy`: a standby's, at a
   * checkpoint of `generation` or on its way to the next.
   */
  role: 'source' | 'copying' | 'copy';
  generation: number;
  /**
   * Of a copy: the state that it descends from; null: unknown. Of a source: the agent that protects it, by which a standby tells that it has been
   * given the primary's own disk.
   */
  lineage: string | null;
  /** Of the host that wrote the content: after a crash of the host, what the disk's cache had taken is unknown. */
  bootId: string;
}

export class DiskRecordError extends Error {
  override readonly name = 'DiskRecordError';
}

/** For disks that are no plain files, and so have no folder of their own. */
export const RECORDS_FOLDER = '/var/lib/colo-agent/disks';

export function bootId(): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
}

/** `file` is a disk image, a block device, or whatever QEMU takes for a disk. */
export function recordPath(file: string): string {
  if (existsSync(file) && statSync(file).isFile()) return `${file}.colo`;
  return path.join(RECORDS_FOLDER, `${createHash('sha256').update(file).digest('hex').slice(0, 32)}.colo`);
}

/** Null when there is none. Throws DiskRecordError for a file that isn't one of ours. */
export function readRecord(file: string): DiskRecord | null {
  const record = recordPath(file);
  if (!existsSync(record)) return null;
  try {
    return check(JSON.parse(readFileSync(record, 'utf8')));
  } catch (error) {
    throw new DiskRecordError(
      `${record} is no disk record: ${(error as Error).message}. Remove it if the disk's content doesn't matter`,
    );
  }
}

/** Durable when it resolves. Rejects with DiskRecordError. */
export async function writeRecord(file: string, content: DiskRecord): Promise<void> {
  const record = recordPath(file);
  const text = `${JSON.stringify(content)}\n`;
  try {
    await replaceFile(record, text);
  } catch (error) {
    throw new DiskRecordError(`can't record the disk's generation in ${record}: ${(error as Error).message}`);
  }
}

/** What goes to the peer must be what it takes: READY carries it. */
const LINEAGE = /^[0-9a-f]{32}$/;
const ROLES = ['source', 'copying', 'copy'];

function check(value: unknown): DiskRecord {
  const record = value as DiskRecord;
  const valid =
    typeof value === 'object' &&
    value !== null &&
    [record.vm, record.disk, record.bootId].every((text) => typeof text === 'string') &&
    (record.lineage === null || (typeof record.lineage === 'string' && LINEAGE.test(record.lineage))) &&
    ROLES.includes(record.role) &&
    Number.isSafeInteger(record.generation) &&
    record.generation >= 0;
  if (!valid) throw new Error('it lacks a member, or has one of another kind');
  return record;
}
