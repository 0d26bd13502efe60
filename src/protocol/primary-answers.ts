/** The shell's answers to what the primary asked it for: each ends its step, and goes to whoever waits for it. */
import type { PrimaryEvent, PrimaryStep } from './machine.ts';
import type { Capture } from './primary-capture.ts';
import type { PrimaryContext } from './primary-context.ts';
import type { PrimarySession } from './primary-session.ts';
import type { VmControl } from './primary-vm.ts';

type Answer = Extract<
  PrimaryEvent['type'],
  'gate-installed' | 'disks-synced' | 'protected' | 'bulk-connected' | 'synced' | 'transmitted'
>;

/** The step that an answer ends. */
const STEP_OF = {
  'gate-installed': 'gate',
  'disks-synced': 'disks',
  protected: 'protect',
  'bulk-connected': 'bulk',
  synced: 'sync',
  transmitted: 'transmit',
} as const satisfies Record<Answer, string>;

/** See `step-failed`. */
const MAY_FAIL_UNASKED: ReadonlySet<PrimaryStep> = new Set(['gate', 'disks', 'resume']);

export class Answers {
  private readonly context: PrimaryContext;
  private readonly vm: VmControl;
  private readonly capture: Capture;

  constructor(context: PrimaryContext, vm: VmControl, capture: Capture) {
    this.context = context;
    this.vm = vm;
    this.capture = capture;
  }

  /** Without a session it is the late answer to one that has ended. Throws "invalid transition" for an answer that nobody waits for. */
  onAnswer(event: PrimaryEvent, session: PrimarySession | null): void {
    const { steps } = this.context;
    switch (event.type) {
      case 'handed-over':
        steps.end('hand-over');
        break;
      case 'resumed':
        steps.end('resume');
        this.vm.onResumed(event.stoodMs);
        break;
      case 'stopped':
        steps.end('stop', event.epoch);
        this.capture.onStopped(event.wasRunning);
        session?.onStopped(event.wasRunning);
        break;
      case 'captured':
        steps.end('capture', event.epoch);
        this.capture.onCaptured(event.pages);
        session?.onCaptured();
        break;
      case 'saved':
        steps.end('save', event.epoch);
        this.capture.onSaved(event.vmstateBytes);
        break;
      case 'stood':
        steps.end('stand');
        this.vm.onStopped(event.wasRunning);
        session?.onStood(event.wasRunning);
        break;
      case 'step-failed':
        this.onStepFailed(event, session);
        break;
      case 'gate-installed':
      case 'disks-synced':
      case 'protected':
      case 'bulk-connected':
      case 'synced':
      case 'transmitted':
        steps.end(STEP_OF[event.type], event.type === 'transmitted' ? event.epoch : undefined);
        session?.onAnswer(event.type);
        break;
    }
  }

  private onStepFailed(
    { step, reason }: PrimaryEvent & { type: 'step-failed' },
    session: PrimarySession | null,
  ): void {
    const { steps } = this.context;
    const unasked = !steps.has(step);
    if (!unasked || !MAY_FAIL_UNASKED.has(step)) steps.end(step);
    switch (step) {
      case 'stop':
        // Nothing is saved of a VM that wasn't stopped: `stop` answers for both.
        steps.drop('save');
        this.capture.onStepFailed(step, reason);
        break;
      case 'capture':
      case 'save':
        this.capture.onStepFailed(step, reason);
        break;
      case 'resume':
        if (unasked) this.vm.reclaim();
        this.vm.onResumeFailed(reason);
        break;
      case 'stand':
        this.vm.onStopFailed();
        session?.giveDrillUp(`the VM could not be stopped: ${reason}`);
        break;
      case 'protect':
        this.vm.reclaim();
        session?.onStepFailed(step, reason);
        break;
      default:
        session?.onStepFailed(step, reason);
        break;
    }
  }
}
