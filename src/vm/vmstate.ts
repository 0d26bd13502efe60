/**
 * The file that QEMU saves the device state into: memory of ours, so that a QEMU that runs as another user, or in a sandbox, needs no path of
 * ours.
 */
import { type MemoryFile, type NativeBinding, native as nativeBinding } from '../native/binding.ts';
import type { QmpClient } from '../qmp/client.ts';
import { addMemoryFd, removeFdSets, takeKeptFile } from './fd-sets.ts';

const LABEL = 'colo-vmstate';

type FileServices = Pick<
  NativeBinding,
  'makeMemoryFile' | 'rewindMemoryFile' | 'duplicateForeignFd' | 'closeFd'
>;

export class VmstateFile {
  readonly #file: MemoryFile;
  readonly #fdSet: number;
  readonly #native: FileServices;

  /** Gives QEMU the file, and takes away what an earlier agent gave it. */
  static async attach(qmp: QmpClient, native: FileServices = nativeBinding): Promise<VmstateFile> {
    await removeFdSets(qmp, LABEL);
    const file = native.makeMemoryFile(LABEL);
    try {
      // xen-save-devices-state opens its file O_WRONLY, and QEMU looks for a descriptor with just that mode in the set.
      return new VmstateFile(file, await addMemoryFd(qmp, file.writeOnlyFd, LABEL), native);
    } catch (error) {
      closeBoth(file, native);
      throw error;
    }
  }

  /** The same for a VM that stands until `detach`. */
  static async attachToStanding(qmp: QmpClient, native: FileServices = nativeBinding): Promise<VmstateFile> {
    await removeFdSets(qmp, LABEL);
    const kept = await takeKeptFile(qmp, LABEL, native);
    return kept ? new VmstateFile(kept.file, kept.fdSet, native) : VmstateFile.attach(qmp, native);
  }

  private constructor(file: MemoryFile, fdSet: number, native: FileServices) {
    this.#file = file;
    this.#fdSet = fdSet;
    this.#native = native;
  }

  /** The saved state, from offset 0 to the file's end. Ours. */
  get fd(): number {
    return this.#file.readWriteFd;
  }

  /**
   * Saves the state of every device but RAM. The command is issued before this returns, so that it leaves in one write with a `stop` issued
   * just before. Of a VM that stands QEMU leaves the run state alone; a running one it stops for the time it takes.
   */
  save(qmp: QmpClient): Promise<unknown> {
    // QEMU writes through the offset that it shares with us, and truncates nothing.
    this.#native.rewindMemoryFile(this.#file);
    // `live` is true if left out, and would give up the block devices (migration/savevm.c, qmp_xen_save_devices_state).
    return qmp.execute('xen-save-devices-state', { filename: `/dev/fdset/${this.#fdSet}`, live: false });
  }

  /** Takes the file away from QEMU and closes it. */
  async detach(qmp: QmpClient): Promise<void> {
    try {
      // By its label: one that was kept may be gone by now.
      await removeFdSets(qmp, LABEL);
    } finally {
      closeBoth(this.#file, this.#native);
    }
  }
}

function closeBoth({ readWriteFd, writeOnlyFd }: MemoryFile, native: FileServices): void {
  native.closeFd(readWriteFd);
  native.closeFd(writeOnlyFd);
}
