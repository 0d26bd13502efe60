/** Where the time of each checkpoint goes on the primary, for `--trace` (docs/estimate-and-trace.md). */
import type { CaptureResult, TransmitResult } from '../native/binding.ts';
import type { PrimaryEffect, PrimaryEvent, PrimaryStep } from '../protocol/machine.ts';
import { monotonicMs } from './driver.ts';
import type { Log } from './log.ts';
import { NO_EPOCH, Trace } from './trace.ts';

/** `pause` has what QEMU itself tells by its STOP and RESUME events, and what the agent sees around it. */
const STEPS = {
  pause: { track: 'pause', args: ['guestStoodUs'] },
  stop: { track: 'QEMU' },
  save: { track: 'QEMU', args: ['vmstateBytes'] },
  cont: { track: 'QEMU' },
  seal: { track: 'capture', args: ['diskBytes'] },
  scan: { track: 'capture', args: ['pages'] },
  copy: { track: 'capture', args: ['pages'] },
  'checkpoint failed': { track: 'pause' },
  'encode and send': { track: 'link', args: ['wireBytes', 'rawBytes', 'encodeUs', 'unchangedPages'] },
  'wait for RECEIVED': { track: 'link' },
  'release of the gate': { track: 'output' },
  'wait for LOADED': { track: 'standby' },
  gate: { track: 'session' },
  disks: { track: 'session' },
  protect: { track: 'session' },
  bulk: { track: 'session' },
  'first copy': { track: 'session' },
  'hand-over': { track: 'session' },
  failed: { track: 'session' },
  state: { track: 'session' },
} as const;

type SessionStep = 'gate' | 'disks' | 'protect' | 'bulk' | 'first copy' | 'hand-over';

/** The effects that begin a step of a session, and the events that end it. */
const BEGINS: Partial<Record<PrimaryEffect['type'], SessionStep>> = {
  'install-gate': 'gate',
  'sync-disks': 'disks',
  protect: 'protect',
  'connect-bulk': 'bulk',
  sync: 'first copy',
  'hand-over': 'hand-over',
};
const ENDS: Partial<Record<PrimaryEvent['type'], SessionStep>> = {
  'gate-installed': 'gate',
  'disks-synced': 'disks',
  protected: 'protect',
  'bulk-connected': 'bulk',
  synced: 'first copy',
  'handed-over': 'hand-over',
};

const INSIDE_PAUSE: ReadonlySet<PrimaryStep> = new Set(['stop', 'capture', 'save', 'resume']);

/** Sees the machine's events and effects, and what the native calls report. Between `stop` and `cont` it only notes times. */
export class PrimaryTrace {
  readonly #trace: Trace<typeof STEPS>;
  /** Of the checkpoint in the making. */
  #epoch = 0;
  #stopIssuedMs = 0;
  #stoppedMs = 0;
  #wasRunning = true;
  #savedMs = 0;
  #resumeIssuedMs = 0;
  #guestStoodUs = Number.NaN;
  /** Of the one that was sent last. */
  #sentEpoch = 0;
  #sentMs = 0;
  #receivedMs = 0;
  readonly #begunMs = new Map<SessionStep, number>();

  /** Rejects when the file can't be made. */
  static async open(path: string, vm: string, log: Log): Promise<PrimaryTrace> {
    const processName = `colo-agent primary ${vm}`;
    return new PrimaryTrace(await Trace.open(path, { processName, steps: STEPS, log }));
  }

  private constructor(trace: Trace<typeof STEPS>) {
    this.#trace = trace;
  }

  /** Before it is carried out. */
  effect(effect: PrimaryEffect): void {
    switch (effect.type) {
      case 'stop-and-save':
        this.#trace.hold();
        this.#epoch = effect.epoch;
        this.#stopIssuedMs = monotonicMs();
        this.#wasRunning = true;
        this.#guestStoodUs = Number.NaN;
        break;
      case 'resume':
        this.#resumeIssuedMs = monotonicMs();
        break;
      case 'transmit':
      case 'abandon':
        // A VM that somebody else had paused isn't resumed by us: there is no pause of ours to spare.
        if (!this.#wasRunning) this.#trace.letGo();
        break;
      case 'state':
        this.#trace.mark('state', NO_EPOCH, monotonicMs(), `${effect.state}: ${effect.reason}`);
        break;
      default: {
        const step = BEGINS[effect.type];
        if (step !== undefined) this.#begunMs.set(step, monotonicMs());
      }
    }
  }

  event(event: PrimaryEvent): void {
    switch (event.type) {
      case 'stopped':
        this.#stoppedMs = event.nowMs;
        this.#wasRunning = event.wasRunning;
        this.#trace.span('stop', event.epoch, this.#stopIssuedMs, event.nowMs);
        break;
      case 'saved':
        this.#savedMs = event.nowMs;
        this.#trace.span('save', event.epoch, this.#stoppedMs, event.nowMs, event.vmstateBytes);
        break;
      case 'resumed':
        // QEMU carries it out behind the save, so it may have been issued before that was answered.
        this.#trace.span('cont', this.#epoch, Math.max(this.#resumeIssuedMs, this.#savedMs), event.nowMs);
        this.#trace.span('pause', this.#epoch, this.#stopIssuedMs, event.nowMs, this.#guestStoodUs);
        this.#trace.letGo();
        break;
      case 'vm-resumed':
        this.#trace.letGo();
        break;
      case 'message':
        if (event.message.body.type === 'received') this.#received(event.message.epoch, event.nowMs);
        if (event.message.body.type === 'loaded')
          this.#trace.span('wait for LOADED', event.message.epoch, this.#receivedMs, event.nowMs);
        break;
      case 'step-failed':
        this.#failed(event.step, event.reason, event.nowMs);
        break;
      default: {
        const step = ENDS[event.type];
        if (step !== undefined) this.#ended(step, event.nowMs);
      }
    }
  }

  captured({ beganUs, sealUs, scanUs, copyUs, pages, diskBytes }: CaptureResult): void {
    const sealedUs = beganUs + sealUs;
    const scannedUs = sealedUs + scanUs;
    this.#trace.spanUs('seal', this.#epoch, beganUs, sealedUs, diskBytes);
    this.#trace.spanUs('scan', this.#epoch, sealedUs, scannedUs, pages);
    this.#trace.spanUs('copy', this.#epoch, scannedUs, scannedUs + copyUs, pages);
  }

  transmitted(epoch: number, result: TransmitResult): void {
    const { beganUs, totalUs, wireBytes, rawBytes, encodeUs, unchangedPages } = result;
    this.#sentEpoch = epoch;
    this.#sentMs = monotonicMs();
    this.#trace.spanUs(
      'encode and send',
      epoch,
      beganUs,
      beganUs + totalUs,
      wireBytes,
      rawBytes,
      encodeUs,
      unchangedPages,
    );
  }

  /** The frames of `epoch` may leave, and those that could have been written to QEMU. */
  released(epoch: number): void {
    this.#trace.span('release of the gate', epoch, this.#receivedMs, monotonicMs());
  }

  /** Comes before the event that says that the VM runs. */
  pauseEnded(pauseMs: number): void {
    this.#guestStoodUs = pauseMs * 1000;
  }

  close(): Promise<void> {
    return this.#trace.close();
  }

  #received(epoch: number, nowMs: number): void {
    // Its answer may be here before our own thread's, that everything has been sent.
    const sentMs = this.#sentEpoch === epoch ? this.#sentMs : nowMs;
    this.#receivedMs = nowMs;
    this.#trace.span('wait for RECEIVED', epoch, sentMs, nowMs);
  }

  #ended(step: SessionStep, nowMs: number): void {
    this.#trace.span(step, NO_EPOCH, this.#begunMs.get(step) ?? nowMs, nowMs);
    this.#begunMs.delete(step);
  }

  #failed(step: PrimaryStep, reason: string, nowMs: number): void {
    const inside = INSIDE_PAUSE.has(step);
    const name = inside ? 'checkpoint failed' : 'failed';
    this.#trace.mark(name, inside ? this.#epoch : NO_EPOCH, nowMs, `${step}: ${reason}`);
    // Whether the guest stands now isn't known here, and it no longer matters for its pause.
    this.#trace.letGo();
  }
}
