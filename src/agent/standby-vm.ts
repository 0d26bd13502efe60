/** The standby VM as the secondary's effects need it: QMP, the native engine that stages and flushes, and the vmstate mailbox. */
import { randomBytes } from 'node:crypto';
import { type NativeError, native, type PeerConnection, type StandbyEngine } from '../native/binding.ts';
import type { SecondaryEffect, SecondaryEvent } from '../protocol/machine.ts';
import type { Lineage } from '../protocol/messages.ts';
import { compare, compareSections } from '../vm/compatibility.ts';
import type { VmDescription } from '../vm/description.ts';
import type { RamBlock } from '../vm/ram-blocks.ts';
import type { PrimaryOfDisks, StandbyDisk } from '../vm/standby-disks.ts';
import { monotonicMs } from './driver.ts';
import { Durations, STEP_BOUNDS_MS } from './durations.ts';
import type { Log } from './log.ts';
import { QemuProcess } from './qemu-process.ts';
import { Samples } from './samples.ts';
import type { PromotionStep, SecondaryTrace } from './secondary-trace.ts';
import { SerialQueue } from './serial-queue.ts';
import type { StandbyParts } from './standby-attach.ts';
import type { TakeOvers } from './take-overs.ts';
import { wakeInterrupts } from './wake-interrupts.ts';

type EventBody = SecondaryEvent extends infer E
  ? E extends SecondaryEvent
    ? Omit<E, 'nowMs'>
    : never
  : never;

type Effect<Type extends SecondaryEffect['type']> = Extract<SecondaryEffect, { type: Type }>;

/** `cont` after a failover: the switches on the way learn the new port from these packets (QEMU's `announce-self`). */
const ANNOUNCE = { initial: 50, max: 550, rounds: 5, step: 50 };

export class StandbyVm {
  readonly flushMs = new Durations(STEP_BOUNDS_MS);
  readonly loadMs = new Durations(STEP_BOUNDS_MS);
  readonly scrubMs = new Samples();
  scrubbedPages = 0;
  scrubFindings = 0;
  receivedBytes = 0;
  checkpoints = 0;
  readonly #parts: StandbyParts;
  readonly #log: Log;
  readonly #trace: SecondaryTrace | null;
  readonly #takeOvers: TakeOvers;
  readonly #process: QemuProcess;
  readonly #queue = new SerialQueue();
  #engine: StandbyEngine | null = null;
  #blockNames: string[];
  /** By epoch, from staging to loading: the next epoch may be staged before the one before it is loaded. */
  readonly #stagedVmstateBytes = new Map<number, number>();
  /** This session's device states have the sections that this QEMU expects. */
  #sectionsChecked = false;
  #onEvent: (event: EventBody) => void = () => {};
  /** The primary whose disks these are copies of, and what they were copies of before it came. */
  #source: PrimaryOfDisks | null = null;
  /** What they become with the session's first checkpoint. */
  #lineage: Lineage = '';
  #lineages: (Lineage | null)[] = [];
  /** What the logs of the primary's disks may hold. */
  #logBytes = 0;
  /** The records say that the copies are whole. */
  #wholeCopy = false;
  /** A write was lost, whatever the records say. */
  #disksLost = false;
  #mailboxAttached = true;
  /** The monitor is another's. */
  #handedOn = false;

  constructor(parts: StandbyParts, log: Log, trace: SecondaryTrace | null, takeOvers: TakeOvers) {
    this.#parts = parts;
    this.#log = log;
    this.#trace = trace;
    this.#takeOvers = takeOvers;
    this.#blockNames = parts.blocks.map((block) => block.name);
    this.#process = new QemuProcess(parts.qmp, log, (reason) => this.#onEvent({ type: 'vm-lost', reason }));
  }

  get pid(): number {
    return this.#process.pid;
  }

  get disks(): readonly StandbyDisk[] {
    return this.#parts.disks.disks;
  }

  listen(onEvent: (event: EventBody) => void): void {
    this.#onEvent = onEvent;
    this.#parts.qmp.onClosed((reason) => {
      if (!this.#handedOn) this.#process.lost(`the QMP connection ended: ${reason}`);
    });
  }

  /** A bulk connection that the acceptor has read the preface of. */
  addBulkConnection(connection: PeerConnection, preface: Uint8Array, peer: string): void {
    if (!this.#engine) {
      this.#log.warn('a bulk connection came without a session', { peer });
      connection.close();
      return;
    }
    try {
      this.#engine.addConnection(connection, preface);
    } catch (error) {
      connection.close();
      this.#log.warn('a bulk connection was refused', { peer, error: (error as Error).message });
    }
  }

  perform(
    effect: Exclude<
      SecondaryEffect,
      {
        type:
          | 'read-record'
          | 'claim'
          | 'withdraw-claim'
          | 'skip-fence'
          | 'send'
          | 'disconnect'
          | 'state'
          | 'finished';
      }
    >,
  ): void {
    switch (effect.type) {
      case 'compare':
        void this.#queue.run(() => this.#compare(effect));
        break;
      case 'open-session':
        void this.#queue
          .run(async () => this.#openSession(effect))
          .catch((error: Error) => this.#onEvent({ type: 'session-failed', reason: error.message }));
        break;
      case 'open-epoch':
        this.#engine?.openEpoch(effect.epoch);
        break;
      case 'flush':
        void this.#queue.run(() => this.#flush(effect.epoch));
        break;
      case 'load':
        void this.#queue.run(() => this.#load(effect.epoch));
        break;
      case 'close-session':
        this.#engine?.closeSession();
        break;
      case 'settle-disks':
        void this.#queue.run(() => this.#settleDisks());
        break;
      case 'promote':
        void this.#queue.run(() => this.#promote(effect.generation));
        break;
      case 'quit-vm':
        void this.#process.quit(this.#queue);
        break;
    }
  }

  /** Leaves a living VM as it was found, but for its RAM and device state. */
  async detach(): Promise<void> {
    const { qmp } = this.#parts;
    this.#engine?.close();
    this.#parts.disks.close();
    await this.#queue.run(async () => {
      if (!this.#process.gone) await this.#removeMailbox();
    });
    this.#process.close();
    qmp.close();
  }

  /** Lets go of a VM that has been promoted: QEMU's monitor is free for its next client, and nothing of ours is left on it. Its end is still told. */
  async handOn(): Promise<void> {
    await this.#queue.run(async () => {
      this.#handedOn = true;
      this.#parts.qmp.close();
    });
  }

  async #compare({ description, generation, lineage }: Effect<'compare'>): Promise<void> {
    const differences = compare(description, this.#parts.description);
    if (differences.length === 0) {
      const primary = description as VmDescription;
      this.#blockNames = primary.ramBlocks.map((block) => block.name);
      differences.push(...(await this.#acceptDisks(primary, generation)));
      this.#lineage = lineage;
      this.#logBytes = primary.disks.reduce((sum, disk) => sum + disk.bufferBytes, 0);
    }
    this.#onEvent({ type: 'compared', difference: differences.length === 0 ? null : differences.join('; ') });
  }

  async #acceptDisks(primary: VmDescription, generation: number): Promise<string[]> {
    const { vm, disks } = this.#parts;
    const source = { vm, generation, owner: primary.diskOwner, disks: primary.disks };
    try {
      const problems = await disks.accept(source);
      if (problems.length > 0) return problems;
      this.#lineages = this.#disksLost ? disks.disks.map(() => null) : disks.lineages();
      // INVARIANT 4: recorded before a byte of this primary can come; what the content descends from is still what it was.
      await disks.record('copying', source, this.#lineages);
      this.#disksLost = false; // the records know it by now
      this.#source = source;
      this.#wholeCopy = false;
      return [];
    } catch (error) {
      return [(error as Error).message];
    }
  }

  #openSession({ generation, connections }: Effect<'open-session'>): void {
    const { blocks, disks, mailbox, description } = this.#parts;
    this.#engine?.close();
    const engine = new native.StandbyEngine({
      pid: this.pid,
      // An index on the wire is an index into the primary's list, so ours takes the primary's order.
      blocks: this.#blockNames.map((name) => blocks.find((block) => block.name === name) as RamBlock),
      mailboxFd: mailbox.fd,
      mailboxStateOffset: mailbox.stateOffset,
      mailboxStateBytes: mailbox.stateBytes,
      machine: description.machine,
      preserved: this.#parts.overwritten.map(({ block, offsetBytes, sizeBytes }) => ({
        block: this.#blockNames.indexOf(block),
        offsetBytes,
        sizeBytes,
      })),
      disks: disks.disks.map(({ id, fd, sizeBytes }) => ({ id, fd, sizeBytes })),
      stagingLimitBytes: stagingLimitBytes(blocks, this.#logBytes),
      onStaged: (checkpoint) => {
        this.receivedBytes += checkpoint.wireBytes;
        this.#stagedVmstateBytes.set(checkpoint.epoch, checkpoint.vmstateBytes);
        this.#trace?.staged(checkpoint);
        this.#onEvent({ type: 'staged', ...checkpoint });
      },
      onFailed: (error: NativeError) => this.#onEvent({ type: 'stream-failed', reason: error.message }),
    });
    this.#sectionsChecked = false;
    this.#stagedVmstateBytes.clear();
    const token = randomBytes(16);
    engine.openSession(token, generation, connections);
    this.#engine = engine;
    this.#onEvent({ type: 'session-opened', bulkToken: token.toString('hex'), lineages: this.#lineages });
  }

  async #flush(epoch: number): Promise<void> {
    const beganAtMs = monotonicMs();
    try {
      const result = await (this.#engine as StandbyEngine).commit(epoch);
      this.#trace?.committed(epoch, result);
      this.scrubMs.add(result.scrubUs / 1000);
      this.scrubbedPages += result.scrubbedPages;
    } catch (error) {
      this.#flushFailed(epoch, error as NativeError);
      return;
    }
    this.flushMs.add(monotonicMs() - beganAtMs);
    this.#onEvent({ type: 'flushed', epoch });
  }

  #flushFailed(epoch: number, { code, message: reason }: NativeError): void {
    const differs = code === 'ERR_COLO_SCRUB';
    if (differs) this.scrubFindings += 1;
    this.#onEvent({ type: differs ? 'ram-differs' : 'flush-failed', epoch, reason });
  }

  async #load(epoch: number): Promise<void> {
    const beganAtMs = monotonicMs();
    try {
      this.#checkSections(epoch);
      await this.#parts.mailbox.load(this.#parts.qmp);
      this.#engine?.restorePreserved();
      if (!this.#wholeCopy) await this.#recordWholeCopy();
    } catch (error) {
      this.#onEvent({ type: 'load-failed', epoch, reason: (error as Error).message });
      return;
    }
    this.loadMs.add(monotonicMs() - beganAtMs);
    this.checkpoints += 1;
    this.#onEvent({ type: 'loaded', epoch });
  }

  /**
   * Before LOADED: the primary takes the lineage for confirmed with it. A record that can't be written costs the next session a comparison of all blocks, not
   * this one its checkpoint.
   */
  async #recordWholeCopy(): Promise<void> {
    try {
      if (this.#source) await this.#parts.disks.record('copy', this.#source, this.#lineage);
      this.#wholeCopy = true;
    } catch (error) {
      this.#log.error('the disks are not recorded as whole copies', { error: (error as Error).message });
    }
  }

  /** QEMU 7.2 says no more than "Error -22" about a section that it can't load: name it before it tries. */
  #checkSections(epoch: number): void {
    const { mailbox, description } = this.#parts;
    const vmstateBytes = this.#stagedVmstateBytes.get(epoch);
    this.#stagedVmstateBytes.delete(epoch);
    if (this.#sectionsChecked || !description.sections || vmstateBytes === undefined) return;
    const differences = compareSections(
      mailbox.sections(description.machine, vmstateBytes),
      description.sections,
    );
    if (differences.length > 0) throw new Error(differences.join('; '));
    this.#sectionsChecked = true;
  }

  /** What the guest was told is durable has to be, on this host too, before its first write. */
  async #settleDisks(): Promise<void> {
    try {
      await this.#timed('sync disks', async () => this.#engine?.syncDisks());
    } catch (error) {
      const unknown = await this.#forgetLineage();
      this.#onEvent({ type: 'settle-failed', reason: `${(error as Error).message}${unknown}` });
      return;
    }
    try {
      if (this.#parts.claims) await this.#rehearseRecord();
    } catch (error) {
      this.#onEvent({ type: 'not-settled', reason: (error as Error).message });
      return;
    }
    this.#onEvent({ type: 'disks-settled' });
  }

  /**
   * INVARIANT 3: nobody knows which blocks the medium lacks, and the primary takes them for copied. With no lineage in the records it has all of them
   * compared, whatever agent is asked then. Gives what a person must know if that can't be written.
   */
  async #forgetLineage(): Promise<string> {
    this.#disksLost = true;
    try {
      if (this.#source) await this.#parts.disks.record('copying', this.#source, []);
      return '';
    } catch (error) {
      return `; ${(error as Error).message}: remove it before this agent is restarted, and it is compared whole`;
    }
  }

  /** Before the generation is claimed: the records beside the disks can be written, which a promotion has to do. */
  async #rehearseRecord(): Promise<void> {
    if (this.#source) await this.#parts.disks.record('copy', this.#source, this.#lineage);
  }

  async #promote(generation: number): Promise<void> {
    const { qmp, disks } = this.#parts;
    const source = this.#source;
    try {
      // INVARIANT 4: whoever asks later must find here that this disk is the newest. Before the guest's first write, too.
      await this.#timed('record disks', async () => {
        if (source) await disks.record('source', { ...source, generation }, []);
      });
    } catch (error) {
      this.#onEvent({ type: 'not-promoted', reason: (error as Error).message });
      return;
    }
    try {
      await this.#timed('cont', () => Promise.all([qmp.execute('cont'), this.#announce()]));
    } catch (error) {
      this.#onEvent({ type: 'promote-failed', reason: (error as Error).message });
      return;
    }
    wakeInterrupts(this.pid, this.#log);
    this.#onEvent({ type: 'promoted' });
    this.#engine?.close();
    this.#engine = null;
    disks.close();
    await this.#removeMailbox();
  }

  async #timed(step: PromotionStep, work: () => Promise<unknown>): Promise<void> {
    const beganMs = monotonicMs();
    await this.#takeOvers.timed(step, work);
    this.#trace?.promoting(step, beganMs);
  }

  /** Sent together with `cont`; the VM runs whatever comes of it. */
  async #announce(): Promise<void> {
    try {
      await this.#parts.qmp.execute('announce-self', ANNOUNCE);
    } catch (error) {
      this.#log.error('the network was not told where the VM runs now', { error: (error as Error).message });
    }
  }

  /** A mailbox that stays behind does the VM no harm, and the next agent removes it. */
  async #removeMailbox(): Promise<void> {
    if (!this.#mailboxAttached) return;
    this.#mailboxAttached = false;
    try {
      await this.#parts.mailbox.detach(this.#parts.qmp);
    } catch (error) {
      this.#log.warn('the vmstate mailbox could not be taken off', { error: (error as Error).message });
    }
  }
}

const LOGS_MAX_BYTES = 16 * 2 ** 30;

/** Two checkpoints may be here at once, each with all of RAM and with logs that are given up at twice their limit. */
export function stagingLimitBytes(blocks: readonly RamBlock[], logBytes: number): number {
  const ramBytes = blocks.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  return 2 * ramBytes + 64 * 2 ** 20 + 4 * Math.min(logBytes, LOGS_MAX_BYTES);
}
