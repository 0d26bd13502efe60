/** Whether this process gets at QEMU's memory, and may be told by the kernel what the guest has written: the very engine attaches, and lets go. */
import { type NativeError, native } from '../../native/binding.ts';
import type { RamBlock } from '../../vm/ram-blocks.ts';
import { type Check, fail, NotAsked, needs, ok, warn } from '../finding.ts';
import type { Patient } from '../patient.ts';

const PRIVILEGES =
  'run as root, or with the capabilities of docs/security.md (CAP_SYS_PTRACE above all); a container needs them, too';

export const ptrace: Check = {
  name: 'ptrace',
  title: "whether QEMU's memory can be reached",
  fault: 'configuration',
  remedy: PRIVILEGES,
  async run(patient) {
    const error = await attach(patient, await patient.blocks());
    await (await patient.vm()).process.openFiles(); // which asks for more than the memory does
    const traced = error === null || isOfTheKernel(error);
    return traced
      ? ok('QEMU can be traced, and its memory read and written')
      : fail(error.message, PRIVILEGES);
  },
};

export const userfaultfd: Check = {
  name: 'userfaultfd',
  title: 'how written pages are found',
  fault: 'configuration',
  async run(patient) {
    const error = await attach(patient, await patient.knownBlocks());
    if (error === null) return ok('by the kernel (userfaultfd), which costs the guest next to nothing');
    if (!isOfTheKernel(error)) throw new NotAsked(needs('ptrace'));
    const remedy =
      error.code === 'ERR_COLO_UFFD_BUSY'
        ? 'somebody else tracks the memory of this VM: an agent, a post-copy migration, a background snapshot; wait for its end'
        : 'use Linux 6.9 or newer, with userfaultfd';
    if (!patient.options.shadow) return fail(error.message, `${remedy}, or leave --no-shadow out`);
    return warn(`by comparing all of RAM in each pause: ${error.message}`, remedy);
  },
};

/** `primary` compares pages itself then, if it has a shadow to compare with. */
function isOfTheKernel({ code }: NativeError): boolean {
  return code === 'ERR_COLO_UFFD_BUSY' || code === 'ERR_COLO_UFFD_UNSUPPORTED';
}

/**
 * Null: it has worked. As with `estimate`, QEMU is left as it was: what the engine has in it is one userfaultfd, whose only descriptor is ours, and no page is
 * protected. A shadow would only take memory.
 */
async function attach(patient: Patient, blocks: RamBlock[]): Promise<NativeError | null> {
  const { qmp } = await patient.vm();
  try {
    new native.PrimaryEngine({
      pid: qmp.peer.pid,
      blocks,
      threads: 1,
      shadow: false,
      tracker: 'userfaultfd',
      stagingResidentBytes: 1 << 20,
      scrubSliceBytes: 0,
      disks: [],
    }).close();
    return null;
  } catch (error) {
    return error as NativeError;
  }
}
