/** QEMU's descriptor sets (`add-fd`): a descriptor of ours under a file name, `/dev/fdset/N`, for commands that open files. */
import type { QmpClient } from '../qmp/client.ts';

/** Gives QEMU a copy of `fd` in a set of its own, marked with `label`; returns the set's number. */
export async function addMemoryFd(qmp: QmpClient, fd: number, label: string): Promise<number> {
  const { 'fdset-id': fdSet } = await qmp.execute('add-fd', { opaque: label }, [fd]);
  return fdSet;
}

/** Removes every set that holds a descriptor marked with `label`, whoever gave it. */
export async function removeFdSets(qmp: QmpClient, label: string): Promise<void> {
  for (const { 'fdset-id': fdSet, fds } of await qmp.execute('query-fdsets')) {
    if (fds.some(({ opaque }) => opaque === label)) await qmp.execute('remove-fd', { 'fdset-id': fdSet });
  }
}
