/** Where the time of each checkpoint, and of a failover, goes on the secondary, for `--trace` (docs/estimate-and-trace.md). */
import type { CommitResult, StagedCheckpoint } from '../native/binding.ts';
import type { SecondaryEffect, SecondaryEvent } from '../protocol/machine.ts';
import { monotonicMs } from './driver.ts';
import type { Log } from './log.ts';
import { NO_EPOCH, Trace } from './trace.ts';

const STEPS = {
  'receive and stage': { track: 'stream', args: ['pages', 'wireBytes', 'diskBytes', 'vmstateBytes'] },
  'stream failed': { track: 'stream' },
  'commit RAM': { track: 'commit' },
  'commit disks': { track: 'commit' },
  'commit device state': { track: 'commit' },
  scrub: { track: 'commit', args: ['scrubbedPages'] },
  load: { track: 'QEMU' },
  'commit failed': { track: 'commit' },
  'take-over': { track: 'take-over' },
  'sync disks': { track: 'take-over steps' },
  'record disks': { track: 'take-over steps' },
  cont: { track: 'take-over steps' },
  'primary lost': { track: 'session' },
  state: { track: 'session' },
} as const;

export type PromotionStep = 'sync disks' | 'record disks' | 'cont';

/** Sees the machine's events and effects, and what the native calls report. */
export class SecondaryTrace {
  readonly #trace: Trace<typeof STEPS>;
  /** The last that was committed: the one that a take-over resumes. */
  #epoch = 0;
  #loadIssuedMs = 0;
  #takeOverMs = 0;
  #eventMs = 0;

  /** Rejects when the file can't be made. */
  static async open(path: string, vm: string, log: Log): Promise<SecondaryTrace> {
    const processName = `colo-agent secondary ${vm}`;
    return new SecondaryTrace(await Trace.open(path, { processName, steps: STEPS, log }));
  }

  private constructor(trace: Trace<typeof STEPS>) {
    this.#trace = trace;
  }

  /** Before it is carried out. */
  effect(effect: SecondaryEffect): void {
    switch (effect.type) {
      case 'flush':
        this.#epoch = effect.epoch;
        break;
      case 'load':
        this.#loadIssuedMs = monotonicMs();
        break;
      case 'state':
        // Its first step may have been told before: a take-over begins with what caused it.
        if (effect.state === 'TAKING-OVER') this.#takeOverMs = this.#eventMs;
        this.#trace.mark('state', NO_EPOCH, this.#eventMs, `${effect.state}: ${effect.reason}`);
        break;
    }
  }

  event(event: SecondaryEvent): void {
    this.#eventMs = event.nowMs;
    switch (event.type) {
      case 'loaded':
        this.#trace.span('load', event.epoch, this.#loadIssuedMs, event.nowMs);
        break;
      case 'flush-failed':
      case 'load-failed':
      case 'ram-differs':
        this.#trace.mark('commit failed', event.epoch, event.nowMs, event.reason);
        break;
      case 'stream-failed':
        this.#trace.mark('stream failed', NO_EPOCH, event.nowMs, event.reason);
        break;
      case 'peer-lost':
        this.#trace.mark('primary lost', NO_EPOCH, event.nowMs, event.reason);
        break;
      case 'promoted':
        this.#trace.span('take-over', this.#epoch, this.#takeOverMs, event.nowMs);
        break;
    }
  }

  staged({ epoch, beganUs, receivedUs, pages, wireBytes, diskBytes, vmstateBytes }: StagedCheckpoint): void {
    this.#trace.spanUs(
      'receive and stage',
      epoch,
      beganUs,
      beganUs + receivedUs,
      pages,
      wireBytes,
      diskBytes,
      vmstateBytes,
    );
  }

  committed(epoch: number, result: CommitResult): void {
    const { beganUs, ramUs, disksUs, mailboxUs, scrubUs, scrubbedPages } = result;
    const ramEndUs = beganUs + ramUs;
    const disksEndUs = ramEndUs + disksUs;
    const mailboxEndUs = disksEndUs + mailboxUs;
    this.#trace.spanUs('commit RAM', epoch, beganUs, ramEndUs);
    this.#trace.spanUs('commit disks', epoch, ramEndUs, disksEndUs);
    this.#trace.spanUs('commit device state', epoch, disksEndUs, mailboxEndUs);
    this.#trace.spanUs('scrub', epoch, mailboxEndUs, mailboxEndUs + scrubUs, scrubbedPages);
  }

  /** A step of the promotion has ended now. */
  promoting(step: PromotionStep, beganMs: number): void {
    this.#trace.span(step, this.#epoch, beganMs, monotonicMs());
  }

  close(): Promise<void> {
    return this.#trace.close();
  }
}
