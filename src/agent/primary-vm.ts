/** The protected VM as the primary's effects need it: QMP, the native engine, the output gate and the device state's file. */
import { fstatSync } from 'node:fs';
import type { TrackerInfo } from '../native/binding.ts';
import type { PrimaryEffect, PrimaryEvent, PrimaryStep } from '../protocol/machine.ts';
import type { VmDescription } from '../vm/description.ts';
import { removeLeftovers } from '../vm/gate-wiring.ts';
import { insist } from './insist.ts';
import type { PrimaryAgentOptions } from './primary-agent.ts';
import type { PrimaryParts } from './primary-attach.ts';
import type { PrimaryDisks } from './primary-disks.ts';
import type { PrimaryMeters } from './primary-meters.ts';
import { PrimaryOutput } from './primary-output.ts';
import { QemuProcess } from './qemu-process.ts';
import type { RunState } from './run-state.ts';
import { SerialQueue } from './serial-queue.ts';

type EventBody = PrimaryEvent extends infer E ? (E extends PrimaryEvent ? Omit<E, 'nowMs'> : never) : never;

export interface PrimaryVmListener {
  onEvent(event: EventBody): void;
  onPauseEnded(pauseMs: number): void;
  onReleased(epoch: number): void;
}

/** What fails when QEMU dies, though it is no QMP command. */
const NEEDS_QEMU: ReadonlySet<PrimaryStep> = new Set(['disks', 'sync', 'transmit']);

export class PrimaryVm {
  readonly description: VmDescription;
  readonly foundClosedGate: boolean;
  readonly tracker: TrackerInfo;
  readonly #options: PrimaryAgentOptions;
  readonly #parts: PrimaryParts;
  readonly #runState: RunState;
  readonly #process: QemuProcess;
  /** QMP conversations of several commands don't mix. */
  readonly #queue = new SerialQueue();
  #engineJob: Promise<unknown> = Promise.resolve();
  readonly #output: PrimaryOutput;
  #listener: PrimaryVmListener | null = null;
  /** It runs elsewhere. */
  #left = false;

  constructor(options: PrimaryAgentOptions, parts: PrimaryParts) {
    this.#options = options;
    this.#parts = parts;
    this.description = parts.description;
    this.foundClosedGate = parts.foundClosedGate;
    this.tracker = parts.engine.info();
    this.#process = new QemuProcess(parts.qmp, options.log, (reason) =>
      this.#emit({ type: 'vm-lost', reason }),
    );
    this.#runState = parts.runState;
    this.#runState.listen({
      onPaused: () => this.#emit({ type: 'vm-paused' }),
      onResumed: () => this.#emit({ type: 'vm-resumed' }),
      onPauseEnded: (pauseMs) => this.#listener?.onPauseEnded(pauseMs),
    });
    this.#output = new PrimaryOutput(options.gateLimitBytes, {
      onHeld: () => this.#emit({ type: 'output-held' }),
      onPressure: () => this.#emit({ type: 'pressure' }),
      onBroken: (reason) => void this.#failedUnlessGone('gate', reason),
      onReleased: (epoch) => this.#listener?.onReleased(epoch),
    });
  }

  get pid(): number {
    return this.#process.pid;
  }

  /** Events flow from here on. */
  listen(listener: PrimaryVmListener): void {
    this.#listener = listener;
    const { qmp, disks } = this.#parts;
    disks.listen({
      onPressure: () => this.#emit({ type: 'pressure' }),
      whileStopped: (body) => this.#queue.run(() => this.#runState.whileStopped(body)),
      onMirrorFailed: (reason) => this.#failed('disks', reason),
      onExportFailed: (reason) => void this.#failedUnlessGone('disks', reason),
    });
    qmp.onEvent('SHUTDOWN', (event) => this.#onShutdown(event.data.guest));
    qmp.onEvent('RESET', () => this.#emit({ type: 'vm-reset' }));
    qmp.onClosed((reason) => this.#process.lost(`the QMP connection ended: ${reason}`));
  }

  heldOutput(): { heldFrames: number; heldBytes: number; droppedFrames: number } {
    return this.#output.stats();
  }

  get disks(): PrimaryDisks {
    return this.#parts.disks;
  }

  /** Begins what `effect` asks for; its answer comes as an event. */
  perform(
    effect: Exclude<
      PrimaryEffect,
      { type: 'claim' | 'connect' | 'disconnect' | 'send' | 'drilled' | 'state' | 'finished' }
    >,
    { peer, credentials }: Pick<PrimaryAgentOptions, 'peer' | 'credentials'>,
    generation: number,
    meters: PrimaryMeters,
  ): void {
    const { engine, vmstate, disks } = this.#parts;
    switch (effect.type) {
      case 'install-gate':
        this.#step(
          'gate',
          this.#queue.run(() => this.#installGate()),
          () => ({ type: 'gate-installed' }),
        );
        break;
      case 'hand-over':
        void this.#queue
          .run(() => this.#handOver(generation))
          .then(() => this.#emit({ type: 'handed-over' }));
        break;
      case 'sync-disks':
        this.#step('disks', this.#syncDisks(effect, meters), () => ({
          type: 'disks-synced',
        }));
        break;
      case 'protect':
        this.#step(
          'protect',
          this.#queue.run(() => this.#protect()),
          () => ({ type: 'protected' }),
        );
        break;
      case 'connect-bulk':
        this.#step(
          'bulk',
          this.#onEngine(() =>
            engine.connect(
              peer.host,
              peer.port,
              Buffer.from(effect.bulkToken, 'hex'),
              generation,
              effect.connections,
              credentials,
            ),
          ),
          () => ({ type: 'bulk-connected' }),
        );
        break;
      case 'disconnect-bulk':
        engine.disconnect();
        disks.sessionEnded();
        break;
      case 'sync':
        this.#step(
          'sync',
          this.#onEngine(() =>
            engine.sync(this.#options.syncBytesPerSecond, (progress) => meters.syncProgress(progress)),
          ),
          () => ({ type: 'synced' }),
        );
        break;
      case 'stop-and-save':
        meters.stopIssued(effect.epoch);
        engine.hurry();
        this.#stopAndSave(effect.epoch);
        break;
      case 'capture':
        // INVARIANTS 1 and 5: the machine asks for this only after `stopped`.
        this.#step(
          'capture',
          this.#onEngine(() => engine.capture(effect.epoch, this.#output.gate)),
          (result) => {
            meters.captured(result);
            return { type: 'captured', epoch: effect.epoch, pages: result.pages };
          },
        );
        break;
      case 'abandon':
        void this.#onEngine(async () => engine.abandon());
        break;
      case 'resume':
        meters.resumeIssued();
        this.#step(
          'resume',
          this.#queue.run(() => this.#resume()),
          (stoodMs) => ({ type: 'resumed', ...(stoodMs !== null && { stoodMs }) }),
        );
        break;
      case 'transmit':
        this.#step(
          'transmit',
          this.#onEngine(() => engine.transmit(effect.epoch, vmstate.fd)),
          (result) => {
            meters.transmitted(effect.epoch, result);
            return { type: 'transmitted', epoch: effect.epoch };
          },
        );
        break;
      case 'release-output':
        this.#output.release(effect.epoch, this.#runState.stoppedByUs);
        break;
      case 'confirm-disks':
        engine.confirm(effect.epoch);
        disks.confirmed();
        break;
      case 'stand-still':
        this.#step(
          'stand',
          this.#queue.run(() => this.#runState.standStill()),
          (wasRunning) => ({ type: 'stood', wasRunning }),
        );
        break;
      case 'leave-vm':
        void this.#queue.run(() => this.#leave());
        break;
      case 'stop-vm':
        void this.#queue.run(() => this.#stand());
        break;
      case 'quit-vm':
        // INVARIANT 4: its gate is not opened on the way.
        void this.#process.quit(this.#queue);
        break;
    }
  }

  /** Takes everything off the VM that is still on it. A living VM keeps its network: what was held has been handed over before. */
  async detach(): Promise<void> {
    const { qmp, guard, engine, vmstate, disks } = this.#parts;
    if (!this.#process.gone) {
      try {
        await this.#queue.run(() => this.#handOver());
        await disks.detach();
        await this.#queue.run(() => vmstate.detach(qmp));
      } catch (error) {
        // What stays behind holds nothing up, and the next agent removes it.
        this.#options.log.warn('not everything could be taken off QEMU', { error: (error as Error).message });
      }
    }
    // What is under way, a quit say, comes to its end.
    await this.#queue.run(() => this.#resumeForGood());
    this.#process.close();
    engine.close();
    disks.close();
    this.#output.close();
    await guard.close();
    qmp.close();
  }

  /** INVARIANT 7: the last who can, since the guard goes next. */
  async #resumeForGood(): Promise<void> {
    if (this.#process.gone) return;
    const failure = await insist(() => this.#runState.resume());
    if (failure !== null && !this.#process.gone)
      this.#options.log.error('the VM stands, and could not be resumed: give QEMU `cont`', {
        error: failure.message,
      });
  }

  async #stand(): Promise<void> {
    const failure = await insist(() => this.#parts.qmp.execute('stop'));
    if (failure !== null)
      this.#options.log.error('the VM could NOT be stopped and may still run: stop or end it by hand', {
        error: failure.message,
      });
  }

  async #installGate(): Promise<void> {
    const { qmp, nics, shutdownAction } = this.#parts;
    await this.#output.install(qmp, nics);
    await shutdownAction.pause(qmp);
  }

  async #syncDisks(
    session: Extract<PrimaryEffect, { type: 'sync-disks' }>,
    meters: PrimaryMeters,
  ): Promise<void> {
    const { qmp, engine, disks } = this.#parts;
    meters.syncBegins();
    await disks.sync(qmp, engine, session, (allDiffer) =>
      this.#onEngine(() =>
        engine.syncDisks(allDiffer, this.#options.syncBytesPerSecond, (progress) =>
          meters.syncProgress(progress),
        ),
      ),
    );
    meters.syncBegins();
  }

  /** `generation`: that in which the VM goes on alone, unless it doesn't. */
  async #handOver(generation: number | null = null): Promise<void> {
    if (generation !== null) await this.#recordGeneration(generation);
    if (this.#process.gone || this.#left) {
      this.#output.close();
      return;
    }
    const { qmp, shutdownAction } = this.#parts;
    try {
      // The VM stands for the moment in which frames change their way, so that none overtakes another.
      const handedOver = await this.#output.handOver(qmp, () => this.#runState.stop());
      if (!handedOver && this.foundClosedGate) await removeLeftovers(qmp);
      await shutdownAction.restore(qmp);
    } catch (error) {
      this.#options.log.error('the output gate could not be taken off', { error: (error as Error).message });
    } finally {
      await this.#resumeAfterAll();
    }
  }

  /** INVARIANT 4: it runs elsewhere. The gate is closed before anything else, and only a VM that stands is without one. */
  async #leave(): Promise<void> {
    const { qmp, shutdownAction } = this.#parts;
    this.#left = true;
    this.#output.close();
    try {
      await this.#runState.leave();
      await removeLeftovers(qmp);
      await shutdownAction.restore(qmp);
    } catch (error) {
      this.#options.log.error('the VM that was handed over could not be left in order', {
        error: (error as Error).message,
      });
    }
  }

  /** INVARIANT 7 before INVARIANT 4: a record that can't be written must not cost the VM its network. */
  async #recordGeneration(generation: number): Promise<void> {
    try {
      await this.#parts.disks.record(generation);
    } catch (error) {
      this.#options.log.error('the generation is not recorded beside the disks', {
        error: (error as Error).message,
      });
    }
  }

  async #protect(): Promise<void> {
    try {
      this.#parts.engine.hurry();
      await this.#runState.stop();
      await this.#onEngine(() => this.#parts.engine.protect());
    } finally {
      await this.#runState.resume();
    }
  }

  /** The queue is free again once `stop` has answered: a `cont` may follow the save in QEMU's own queue before that is answered. */
  #stopAndSave(epoch: number): void {
    const { qmp, vmstate } = this.#parts;
    void this.#queue.run(async () => {
      // Both commands leave in one write: QEMU goes on to the save while we still read its answer to `stop`.
      const stopping = this.#runState.stop();
      const saving = vmstate.save(qmp);
      this.#runState.expectSave(saving);
      try {
        const wasRunning = await stopping;
        this.#emit({ type: 'stopped', epoch, wasRunning });
      } catch (error) {
        await saving.catch(() => {});
        this.#failed('stop', error);
        return;
      }
      void this.#saved(epoch, saving);
    });
  }

  async #saved(epoch: number, saving: Promise<unknown>): Promise<void> {
    try {
      await saving;
      this.#emit({ type: 'saved', epoch, vmstateBytes: fstatSync(this.#parts.vmstate.fd).size });
    } catch (error) {
      this.#failed('save', error);
    }
  }

  async #resume(): Promise<number | null> {
    const stoodMs = await this.#runState.resume();
    this.#output.resumed();
    return stoodMs;
  }

  /**
   * QEMU's ends of sockets close before its death is known otherwise: only with a QEMU that still answers has a gate, a mirror or a checkpoint that
   * needs one failed by itself. Told otherwise, the standby would take the primary for alive, and not take over.
   */
  async #failedUnlessGone(step: PrimaryStep, error: unknown): Promise<void> {
    try {
      await this.#parts.qmp.execute('query-status');
    } catch {
      return; // the loss of the VM is reported by whoever notices it
    }
    this.#failed(step, error);
  }

  /** INVARIANT 7: whatever failed, a VM that we stopped goes on. */
  async #resumeAfterAll(): Promise<void> {
    try {
      await this.#runState.resume();
    } catch (error) {
      if (!this.#process.gone) this.#failed('resume', error);
    }
  }

  #onEngine<T>(job: () => Promise<T>): Promise<T> {
    const result = this.#engineJob.then(job, job);
    this.#engineJob = result.catch(() => {}); // every caller handles its own failure
    return result;
  }

  #step<T>(step: PrimaryStep, work: Promise<T>, answer: (result: T) => EventBody): void {
    work.then(
      (result) => this.#emit(answer(result)),
      (error) => {
        if (NEEDS_QEMU.has(step)) void this.#failedUnlessGone(step, error);
        else this.#failed(step, error);
      },
    );
  }

  #failed(step: PrimaryStep, error: unknown): void {
    this.#emit({ type: 'step-failed', step, reason: error instanceof Error ? error.message : String(error) });
  }

  #onShutdown(byGuest: boolean): void {
    const gone = !byGuest || !this.#parts.shutdownAction.paused;
    if (gone) this.#process.leave();
    this.#emit({ type: 'vm-shutdown', gone });
  }

  #emit(event: EventBody): void {
    this.#listener?.onEvent(event);
  }
}
