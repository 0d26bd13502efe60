import type { CaptureResult, SyncProgress, TransmitResult } from '../native/binding.ts';
import type { PrimaryEvent } from '../protocol/machine.ts';
import { monotonicMs } from './driver.ts';
import { CHECKPOINT_BOUNDS_MS, Durations, STEP_BOUNDS_MS } from './durations.ts';
import type { PrimaryTrace } from './primary-trace.ts';
import { Samples } from './samples.ts';
import { ScrubMeter } from './scrub-meter.ts';
import type { PrimaryStatus } from './status.ts';

type Metered = Pick<
  PrimaryStatus,
  | 'syncPercent'
  | 'syncSecondsLeft'
  | 'checkpoints'
  | 'pauseMs'
  | 'pauseShare'
  | 'pauseTotalMs'
  | 'checkpointMs'
  | 'histograms'
  | 'dirtyPages'
  | 'pauseStepsUs'
  | 'sentBytes'
  | 'checkpointBytes'
>;

type PauseSteps = NonNullable<PrimaryStatus['pauseStepsUs']>;

/** The primary's figures, taken from the events that its machine sees and from what the native calls report. */
export class PrimaryMeters {
  readonly #pauseMs = new Durations(STEP_BOUNDS_MS);
  readonly #checkpointMs = new Durations(CHECKPOINT_BOUNDS_MS);
  readonly #dirtyPages = new Samples();
  readonly #scrub = new ScrubMeter();
  readonly #beganAtMs = monotonicMs();
  #stopIssuedAtMs = 0;
  #stoppedAtMs = 0;
  #savedAtMs = 0;
  #resumeIssuedAtMs = 0;
  #capture: CaptureResult | null = null;
  #steps: PauseSteps | null = null;
  #pauseTotalMs = 0;
  #sentBytes = 0;
  #dirtyPagesTotal = 0;
  readonly #checkpointBytes = { wire: 0, raw: 0 };
  #sync: { startedAtMs: number; progress: SyncProgress } | null = null;
  /** When `stop` was issued for each checkpoint on its way. */
  readonly #begunAtMs = new Map<number, number>();
  readonly #trace: PrimaryTrace | null;

  /** What the native calls report goes into `trace`, too. */
  constructor(trace: PrimaryTrace | null) {
    this.#trace = trace;
  }

  observe(event: PrimaryEvent): void {
    switch (event.type) {
      case 'stopped':
        this.#stoppedAtMs = event.nowMs;
        break;
      case 'saved':
        this.#savedAtMs = event.nowMs;
        break;
      case 'resumed':
        this.#resumed(event.nowMs);
        break;
      case 'message': {
        const { body, epoch } = event.message;
        if (body.type === 'received') this.#received(epoch, event.nowMs);
        if (body.type === 'error' && body.code === 'scrub') this.#scrub.found(body.message);
        break;
      }
    }
  }

  /** A session begins or has ended: its checkpoints under way are no more. */
  sessionChanged(): void {
    this.#begunAtMs.clear();
    this.#sync = null;
  }

  /** A copy begins: of the disks, then of RAM. */
  syncBegins(): void {
    this.#sync = null;
  }

  stopIssued(epoch: number): void {
    this.#stopIssuedAtMs = monotonicMs();
    this.#begunAtMs.set(epoch, this.#stopIssuedAtMs);
  }

  resumeIssued(): void {
    this.#resumeIssuedAtMs = monotonicMs();
  }

  captured(result: CaptureResult): void {
    this.#capture = result;
    this.#dirtyPages.add(result.pages);
    this.#dirtyPagesTotal += result.pages;
    this.#trace?.captured(result);
  }

  transmitted(epoch: number, result: TransmitResult): void {
    this.#sentBytes += result.wireBytes;
    this.#checkpointBytes.wire += result.wireBytes;
    this.#checkpointBytes.raw += result.rawBytes;
    this.#scrub.transmitted(result, monotonicMs());
    this.#trace?.transmitted(epoch, result);
  }

  syncProgress(progress: SyncProgress): void {
    this.#sync ??= { startedAtMs: monotonicMs(), progress: { ...progress, wireBytes: 0 } };
    this.#sentBytes += progress.wireBytes - this.#sync.progress.wireBytes;
    this.#sync.progress = progress;
  }

  pauseEnded(pauseMs: number): void {
    this.#pauseMs.add(pauseMs);
    this.#pauseTotalMs += pauseMs;
    this.#trace?.pauseEnded(pauseMs);
  }

  scrub(): Omit<PrimaryStatus['scrub'], 'sliceBytes'> {
    return this.#scrub.status();
  }

  status(): Metered {
    const pauseMs = this.#pauseMs.summary();
    const checkpointMs = this.#checkpointMs.summary();
    const dirtyPages = this.#dirtyPages.summary();
    return {
      syncPercent: this.#sync ? percent(this.#sync.progress) : null,
      syncSecondsLeft: this.#sync ? secondsLeft(this.#sync) : null,
      checkpoints: this.#checkpointMs.count,
      pauseMs,
      pauseShare: this.#pauseTotalMs / Math.max(1, monotonicMs() - this.#beganAtMs),
      pauseTotalMs: this.#pauseTotalMs,
      checkpointMs: { p50: checkpointMs.p50, p99: checkpointMs.p99 },
      histograms: { pause: this.#pauseMs.histogram(), checkpoint: this.#checkpointMs.histogram() },
      dirtyPages: { last: dirtyPages.last, p50: dirtyPages.p50, total: this.#dirtyPagesTotal },
      pauseStepsUs: this.#steps,
      sentBytes: this.#sentBytes,
      checkpointBytes: { ...this.#checkpointBytes },
    };
  }

  #resumed(nowMs: number): void {
    if (!this.#capture) return;
    if (this.#savedAtMs < this.#stoppedAtMs) {
      this.#capture = null; // the save failed
      return;
    }
    this.#steps = {
      stop: microseconds(this.#stoppedAtMs - this.#stopIssuedAtMs),
      seal: this.#capture.sealUs,
      scan: this.#capture.scanUs,
      copy: this.#capture.copyUs,
      save: microseconds(this.#savedAtMs - this.#stoppedAtMs),
      // QEMU carries it out behind the save, so it may have been issued before that was answered.
      cont: microseconds(nowMs - Math.max(this.#resumeIssuedAtMs, this.#savedAtMs)),
    };
    this.#capture = null;
  }

  #received(epoch: number, nowMs: number): void {
    const begunAtMs = this.#begunAtMs.get(epoch);
    if (begunAtMs === undefined) return;
    this.#begunAtMs.delete(epoch);
    this.#checkpointMs.add(nowMs - begunAtMs);
    this.#sync = null;
  }
}

function microseconds(ms: number): number {
  return Math.round(ms * 1000);
}

function percent({ doneBytes, totalBytes }: SyncProgress): number {
  return totalBytes === 0 ? 100 : Math.floor((100 * doneBytes) / totalBytes);
}

function secondsLeft(sync: { startedAtMs: number; progress: SyncProgress }): number | null {
  const { doneBytes, totalBytes } = sync.progress;
  if (doneBytes === 0) return null;
  const elapsedSeconds = (monotonicMs() - sync.startedAtMs) / 1000;
  return Math.round((elapsedSeconds * (totalBytes - doneBytes)) / doneBytes);
}
