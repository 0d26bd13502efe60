/** The VM's disks, and what copying them needs. */
import { accessSync, constants, existsSync } from 'node:fs';
import path from 'node:path';
import { DISK_PREFIX } from '../../vm/disk-mirror.ts';
import { readRecord, recordPath } from '../../vm/disk-record.ts';
import { NBD_IN_USE } from '../../vm/disk-source.ts';
import { copiedDisks, type Disk, diskFile, findDisks } from '../../vm/disks.ts';
import type { Examined } from '../../vm/preflight.ts';
import { unfitForCopy } from '../../vm/standby-disks.ts';
import { type Check, type Finding, fail, ok, warn } from '../finding.ts';
import { judge } from './vm.ts';

export const disks: Check = {
  name: 'disks',
  title: 'whether the disks can be copied',
  fault: 'configuration',
  async run(patient) {
    const vm = await patient.vm();
    const all = await findDisks(vm.qmp);
    const copied = copiedDisks(all, vm.exceptions);
    if ((await patient.role()) === 'secondary') {
      const unfit = copied.flatMap((disk) => unfitForCopy(disk) ?? []);
      if (unfit.length > 0)
        return fail(
          unfit.join('; '),
          'start the standby with raw, writable disks, unless the primary excepts these (--ungated-disk, --shared-disk)',
        );
    }
    return judge(patient, 'disks', async () => {
      const others = all.length - copied.length;
      return `copied: ${copied.map(describe).join(', ') || 'none'}; ${others} not (read-only, or excepted)`;
    });
  },
};

export const replication: Check = {
  name: 'replication',
  title: 'what copying the disks needs',
  fault: 'configuration',
  remedy: 'look at that record, which tells the newer disk from the older one (docs/disks.md)',
  async run(patient) {
    const vm = await patient.vm();
    const role = await patient.role();
    const copied = copiedDisks(await findDisks(vm.qmp), vm.exceptions);
    if (copied.length === 0) return ok('nothing is copied');
    const lacking = await judge(patient, 'replication', async () => '');
    if (lacking.verdict !== 'ok') return lacking;
    if (role === 'primary' && (await nbdServerIsTaken(vm))) return fail(NBD_IN_USE, 'nbd-server-stop');
    const files = copied.map((disk) => diskFile(vm.process.pid, disk));
    return judgeRecords(files, role === 'primary');
  },
};

function describe({ id, format, sizeBytes }: Disk): string {
  return `${id} (${format}, ${(sizeBytes / 1e6).toFixed(1)} MB)`;
}

/** An export that isn't an agent's tells that there is a server, which nobody can be asked about. */
async function nbdServerIsTaken({ qmp }: Examined): Promise<boolean> {
  const exports = await qmp.execute('query-block-exports');
  return exports.some(({ id }) => !id.startsWith(DISK_PREFIX));
}

/** Throws DiskRecordError, as an agent that attaches does. */
function judgeRecords(files: readonly string[], runsHere: boolean): Finding {
  const wasStandby: string[] = [];
  for (const file of files) {
    const folder = path.dirname(recordPath(file));
    const closed = whyNotWritable(folder);
    if (closed !== null)
      return fail(
        `can't record the disk's generation in ${recordPath(file)}: ${closed}`,
        `have ${folder} writable for the agent`,
      );
    const record = readRecord(file);
    if (record !== null && record.role !== 'source') wasStandby.push(file);
  }
  if (runsHere && wasStandby.length > 0)
    return warn(
      `the VM runs on a disk that was a standby: ${wasStandby.join(', ')}`,
      'make sure that this is the newer one of the two hosts',
    );
  return ok(`${files.length} can be copied, and recorded beside`);
}

/** Null when a file can be made in `folder`, or the folder itself be made. */
export function whyNotWritable(folder: string): string | null {
  let existing = folder;
  while (!existsSync(existing)) existing = path.dirname(existing);
  try {
    accessSync(existing, constants.W_OK | constants.X_OK);
    return null;
  } catch (error) {
    return (error as Error).message;
  }
}
