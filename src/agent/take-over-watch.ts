/** Watches one take-over, from its first sign to its end: the machine's events and effects in, a record out. It reads no clock. */
import type { SecondaryEffect, SecondaryEvent } from '../protocol/machine.ts';
import type { Decision, TakeOverRecord, TakeOverStep } from './take-over-record.ts';

/** One that waits for its witness for days must not fill the memory: what was in the middle goes. */
const STEPS_MAX = 60;

type Step = 'settle disks' | 'ask the witness' | 'load the last checkpoint' | 'let it run';

export class TakeOverWatch {
  readonly #beganMs: number;
  readonly #cause: string;
  readonly #steps: TakeOverStep[] = [];
  readonly #open = new Map<Step, number>();
  #epoch = 0;
  #generation: number | null = null;
  #decidedBy: Decision = null;

  /** `sign`: the event that began it. */
  constructor(sign: SecondaryEvent, cause: string, epoch: number) {
    this.#beganMs = firstSignMs(sign);
    this.#cause = cause;
    this.#epoch = epoch;
    if (this.#beganMs < sign.nowMs) this.#mark('the primary was last heard', this.#beganMs);
    this.#mark(signOf(sign), sign.nowMs, 'reason' in sign ? sign.reason : '');
  }

  event(event: SecondaryEvent): void {
    switch (event.type) {
      case 'loaded':
        this.#epoch = event.epoch;
        this.#end('load the last checkpoint', event.nowMs, `checkpoint ${event.epoch}`);
        break;
      case 'load-failed':
        this.#end('load the last checkpoint', event.nowMs, event.reason);
        break;
      case 'disks-settled':
        this.#end('settle disks', event.nowMs, '');
        break;
      case 'settle-failed':
      case 'not-settled':
        this.#end('settle disks', event.nowMs, event.reason);
        break;
      case 'claim-won':
        this.#decidedBy ??= event.kind === 'seize' ? 'person' : 'witness';
        this.#end('ask the witness', event.nowMs, `generation ${event.generation} is won`);
        break;
      case 'claim-lost':
        this.#decidedBy = 'witness';
        this.#end('ask the witness', event.nowMs, event.reason);
        break;
      case 'claim-unanswered':
        this.#mark('the witness is silent', event.nowMs, event.reason);
        break;
      case 'command':
        this.#mark(signOf(event), event.nowMs);
        break;
      case 'not-promoted':
      case 'promote-failed':
        this.#end('let it run', event.nowMs, event.reason);
        break;
      case 'promoted':
        this.#end('let it run', event.nowMs, '');
        this.#mark('the guest runs here', event.nowMs);
        break;
    }
  }

  effect(effect: SecondaryEffect, nowMs: number): void {
    switch (effect.type) {
      case 'load':
        this.#open.set('load the last checkpoint', nowMs);
        break;
      case 'settle-disks':
        this.#open.set('settle disks', nowMs);
        break;
      case 'claim':
        if (effect.claim.kind === 'seize') this.#decidedBy = 'person';
        this.#open.set('ask the witness', nowMs);
        break;
      case 'withdraw-claim':
        this.#mark('the claim is withdrawn', nowMs);
        break;
      case 'promote':
        this.#generation = effect.generation;
        if (effect.handedOver) this.#decidedBy = 'primary';
        this.#decidedBy ??= this.#cause === 'ordered by a person' ? 'person' : 'nobody';
        this.#open.set('let it run', nowMs);
        break;
      case 'skip-fence':
        this.#mark('the fence is skipped, by force', nowMs);
        break;
    }
  }

  /** What the shell does for an effect of the machine's. */
  step(what: string, beganMs: number, endedMs: number): void {
    this.#add({ what, atMs: beganMs - this.#beganMs, tookMs: endedMs - beganMs, detail: '' });
  }

  /** `wallMs`: the time of day at `nowMs`, since 1970. */
  record(
    vm: string,
    outcome: TakeOverRecord['outcome'],
    reason: string,
    nowMs: number,
    wallMs: number,
  ): TakeOverRecord {
    const tookMs = nowMs - this.#beganMs;
    const beganAt = new Date(wallMs - tookMs).toISOString();
    return {
      id: `${vm}-${beganAt.replace(/[-:.]/g, '')}`,
      vm,
      outcome,
      reason,
      cause: this.#cause,
      generation: this.#generation,
      epoch: this.#epoch,
      beganAt,
      tookMs,
      decidedBy: this.#decidedBy,
      steps: this.#steps.toSorted((a, b) => a.atMs - b.atMs),
    };
  }

  #mark(what: string, nowMs: number, detail = ''): void {
    this.#add({ what, atMs: nowMs - this.#beganMs, tookMs: null, detail });
  }

  /** One that nobody began was begun before the take-over: how long it took belongs to no one. */
  #end(what: Step, nowMs: number, detail: string): void {
    const beganMs = this.#open.get(what);
    this.#open.delete(what);
    const atMs = (beganMs ?? nowMs) - this.#beganMs;
    this.#add({ what, atMs, tookMs: beganMs === undefined ? null : nowMs - beganMs, detail });
  }

  #add(step: TakeOverStep): void {
    const { what, detail } = this.#steps.at(-1) ?? {};
    // What is tried again and again is told once.
    if (what === step.what && detail === step.detail && detail !== '') return;
    this.#steps.push(step);
    if (this.#steps.length > STEPS_MAX) this.#steps.splice(STEPS_MAX / 2, 1);
  }
}

/** A primary that has gone silent was lost when it was last heard, not when that was long enough ago. */
export function firstSignMs(sign: SecondaryEvent): number {
  return sign.type === 'peer-silent' ? Math.min(sign.heardMs, sign.nowMs) : sign.nowMs;
}

function signOf(event: SecondaryEvent): string {
  switch (event.type) {
    case 'peer-silent':
      return 'it has been silent for too long';
    case 'peer-lost':
      return "the primary's connection has ended";
    case 'peer-malformed':
      return 'what the primary sends makes no sense';
    case 'message':
      return 'the primary hands the VM over';
    case 'command':
      return event.command === 'force-failover' ? 'a person orders it by force' : 'a person orders it';
    default:
      return 'the take-over begins';
  }
}
