/** The vmstate mailbox on a standby: device states are put into it by the native engine and loaded by `snapshot-load`. */
import { ftruncateSync, readSync, writeSync } from 'node:fs';
import { type MemoryFile, type NativeBinding, native as nativeBinding } from '../native/binding.ts';
import type { QmpClient } from '../qmp/client.ts';
import { addMemoryFd, type GivenFile, removeFdSets, takeKeptFile } from './fd-sets.ts';
import { jobEvents } from './jobs.ts';
import { IMAGE_BYTES, mailboxHead, SNAPSHOT_TAG, STATE_BYTES, STATE_OFFSET_BYTES } from './mailbox-image.ts';
import { parseSections, type Section } from './vmstate-sections.ts';

const LABEL = 'colo-mailbox';
/** Of a device state: magic and version. */
const HEADER_BYTES = 8;
const JOB_PREFIX = 'colo-load-';

type FileServices = Pick<NativeBinding, 'makeMemoryFile' | 'duplicateForeignFd' | 'closeFd'>;

/** QEMU refused a device state; the VM's devices are in no defined state until another one has been loaded. */
export class LoadError extends Error {
  constructor(reason: string) {
    super(`QEMU could not load the device state: ${reason}`);
    this.name = 'LoadError';
  }
}

export class Mailbox {
  readonly stateOffset = STATE_OFFSET_BYTES;
  readonly stateBytes = STATE_BYTES;
  readonly #file: MemoryFile;
  readonly #fdSet: number;
  readonly #node: string;
  readonly #native: FileServices;
  static #attached = 0;
  #loads = 0;

  /** Adds the mailbox to a QEMU as a block node that no device uses, and removes what an earlier agent left. */
  static async attach(qmp: QmpClient, native: FileServices = nativeBinding): Promise<Mailbox> {
    await removeLeftMailboxes(qmp);
    const { file, fdSet } = (await takeKeptFile(qmp, LABEL, native)) ?? (await giveNewFile(qmp, native));
    try {
      ftruncateSync(file.readWriteFd, 0);
      writeSync(file.readWriteFd, mailboxHead(), 0, undefined, 0);
      ftruncateSync(file.readWriteFd, IMAGE_BYTES);
      Mailbox.#attached += 1;
      const mailbox = new Mailbox(file, fdSet, `${LABEL}-${process.pid}-${Mailbox.#attached}`, native);
      await mailbox.#addNode(qmp);
      return mailbox;
    } catch (error) {
      closeBoth(file, native);
      throw error;
    }
  }

  private constructor(file: MemoryFile, fdSet: number, node: string, native: FileServices) {
    this.#file = file;
    this.#fdSet = fdSet;
    this.#node = node;
    this.#native = native;
  }

  /** The image. Ours; the engine writes the state into it at `stateOffset`. */
  get fd(): number {
    return this.#file.readWriteFd;
  }

  /**
   * Loads what lies in the mailbox. QEMU resets the machine first, which leaves guest RAM as it is; a running VM is stopped for it and goes on.
   * INVARIANT 6: the checkpoint's RAM must be in place, some devices read it when they are loaded. Throws LoadError with QEMU's reason
   * (QEMU 7.2 says only "Error -22 while loading VM state" and the rest on its stderr), QmpError when the job can't even be started.
   */
  async load(qmp: QmpClient): Promise<void> {
    this.#loads += 1;
    const id = `${JOB_PREFIX}${process.pid}-${this.#loads}`;
    const events = jobEvents(qmp, id);
    const concluded = events.until((status) => status === 'concluded');
    const arguments_ = { 'job-id': id, tag: SNAPSHOT_TAG, vmstate: this.#node, devices: [this.#node] };
    try {
      await Promise.all([qmp.execute('snapshot-load', arguments_), concluded]);
    } finally {
      events.stop();
    }
    // A job that failed ends "concluded" as well; only the list tells.
    const [jobs] = await qmp.executeAll([['query-jobs'], ['job-dismiss', { id }]]);
    const job = jobs.find((candidate) => candidate.id === id);
    if (!job) throw new LoadError(`job ${id} vanished before its result could be read`);
    if (job.error !== undefined) throw new LoadError(job.error);
  }

  /** The sections of the primary's device state that lies in the mailbox, `vmstateBytes` long before it was made loadable for `machine`. */
  sections(machine: string, vmstateBytes: number): Section[] {
    const state = Buffer.alloc(vmstateBytes);
    const configurationBytes = 5 + Buffer.byteLength(machine); // put in behind the header: native/core/vmstate_mailbox.h
    readSync(this.fd, state, 0, HEADER_BYTES, STATE_OFFSET_BYTES);
    const rest = STATE_OFFSET_BYTES + HEADER_BYTES + configurationBytes;
    readSync(this.fd, state, HEADER_BYTES, vmstateBytes - HEADER_BYTES, rest);
    return parseSections(state);
  }

  /** Takes the mailbox off QEMU and closes the image. */
  async detach(qmp: QmpClient): Promise<void> {
    try {
      await qmp.execute('blockdev-del', { 'node-name': this.#node });
      // By its label: a set that was to be removed before is gone as soon as the VM runs.
      await removeFdSets(qmp, LABEL);
      // QEMU may keep it, but not what is in it.
      ftruncateSync(this.#file.readWriteFd, 0);
    } finally {
      closeBoth(this.#file, this.#native);
    }
  }

  async #addNode(qmp: QmpClient): Promise<void> {
    try {
      await qmp.execute('blockdev-add', {
        'node-name': this.#node,
        driver: 'qcow2',
        // Image locks keep two writers apart; here both are meant to write.
        file: { driver: 'file', filename: `/dev/fdset/${this.#fdSet}`, locking: 'off' },
      });
    } catch (error) {
      await removeFdSets(qmp, LABEL);
      throw error;
    }
  }
}

/** Jobs, nodes and descriptor sets of an agent that died. A job that still runs is waited for by QEMU itself: blockdev-del then says so. */
async function removeLeftMailboxes(qmp: QmpClient): Promise<void> {
  for (const { id, status } of await qmp.execute('query-jobs')) {
    if (id.startsWith(JOB_PREFIX) && status === 'concluded') await qmp.execute('job-dismiss', { id });
  }
  for (const { 'node-name': node } of await qmp.execute('query-named-block-nodes', { flat: true })) {
    if (node?.startsWith(LABEL)) await qmp.execute('blockdev-del', { 'node-name': node });
  }
  await removeFdSets(qmp, LABEL);
}

async function giveNewFile(qmp: QmpClient, native: FileServices): Promise<GivenFile> {
  const file = native.makeMemoryFile(LABEL);
  try {
    return { file, fdSet: await addMemoryFd(qmp, file.readWriteFd, LABEL) };
  } catch (error) {
    closeBoth(file, native);
    throw error;
  }
}

function closeBoth({ readWriteFd, writeOnlyFd }: MemoryFile, native: FileServices): void {
  native.closeFd(readWriteFd);
  native.closeFd(writeOnlyFd);
}
