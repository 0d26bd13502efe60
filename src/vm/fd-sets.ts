/** QEMU's descriptor sets (`add-fd`): a descriptor of ours under a file name, `/dev/fdset/N`, for commands that open files. */
import { fstatSync, openSync, readlinkSync } from 'node:fs';
import type { MemoryFile, NativeBinding } from '../native/binding.ts';
import type { QmpClient } from '../qmp/client.ts';

/** Gives QEMU a copy of `fd` in a set of its own, marked with `label`; returns the set's number. */
export async function addMemoryFd(qmp: QmpClient, fd: number, label: string): Promise<number> {
  const { 'fdset-id': fdSet } = await qmp.execute('add-fd', { opaque: label }, [fd]);
  return fdSet;
}

/** A file in memory of which QEMU has a descriptor in a set. */
export interface GivenFile {
  file: MemoryFile;
  fdSet: number;
}

type FileServices = Pick<NativeBinding, 'duplicateForeignFd' | 'closeFd'>;

/**
 * A file that an earlier agent gave to a VM which stands, and which QEMU has kept although it was to remove it: before 9.1 it closes descriptors only while the
 * VM runs (monitor_fdset_cleanup), and a standby's never does. If each agent gave it another, its table of descriptors would fill up. When the VM runs, QEMU
 * may remove the set at any moment. Null where there is none, and where QEMU's descriptors are out of reach: then one more is better than no standby.
 */
export async function takeKeptFile(
  qmp: QmpClient,
  label: string,
  native: FileServices,
): Promise<GivenFile | null> {
  for (const { 'fdset-id': fdSet, fds } of await qmp.execute('query-fdsets')) {
    const kept = fds.find(({ opaque }) => opaque === label);
    const file = kept && takeOver(qmp.peer.pid, kept.fd, label, native);
    if (file) return { file, fdSet };
  }
  return null;
}

/** The very descriptor, because of its offset, and one of our own to read by. */
function takeOver(pid: number, fd: number, label: string, native: FileServices): MemoryFile | null {
  let writeOnlyFd: number;
  try {
    writeOnlyFd = native.duplicateForeignFd(pid, fd);
  } catch {
    return null;
  }
  // QEMU only says that it is ours. It must not have us write to a file that it may only read.
  if (!isMemoryFile(writeOnlyFd, label)) {
    native.closeFd(writeOnlyFd);
    return null;
  }
  return { writeOnlyFd, readWriteFd: openSync(`/proc/self/fd/${writeOnlyFd}`, 'r+') };
}

/** By its name alone it might be a file of QEMU's own mount namespace; those have links. */
function isMemoryFile(fd: number, label: string): boolean {
  return readlinkSync(`/proc/self/fd/${fd}`) === `/memfd:${label} (deleted)` && fstatSync(fd).nlink === 0;
}

/** Removes every set that holds a descriptor marked with `label`, whoever gave it. */
export async function removeFdSets(qmp: QmpClient, label: string): Promise<void> {
  for (const { 'fdset-id': fdSet, fds } of await qmp.execute('query-fdsets')) {
    if (fds.some(({ opaque }) => opaque === label)) await qmp.execute('remove-fd', { 'fdset-id': fdSet });
  }
}
