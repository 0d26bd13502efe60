/** The primary's machine: finding a peer, one session after the other, and leaving the VM in order. docs/protocol.md, docs/architecture.md. */
import { invalidTransition } from './errors.ts';
import type {
  Machine,
  PrimaryEffect,
  PrimaryEvent,
  PrimaryOptions,
  PrimaryStep,
  StateWord,
} from './machine.ts';
import type { ByeReason, Lineage } from './messages.ts';
import { Capture } from './primary-capture.ts';
import { PrimaryContext } from './primary-context.ts';
import { PrimarySession, type SessionEnd } from './primary-session.ts';
import { VmControl } from './primary-vm.ts';

const BACKOFF_MAX = 10;
/** Between attempts when a person must change something first. */
const SLOW_RETRY_MS = 30_000;

type Outcome = (PrimaryEffect & { type: 'finished' })['outcome'];
type Answer = Extract<
  PrimaryEvent['type'],
  'gate-installed' | 'disks-synced' | 'protected' | 'bulk-connected' | 'synced' | 'transmitted'
>;

const STEP_OF = {
  'gate-installed': 'gate',
  'disks-synced': 'disks',
  protected: 'protect',
  'bulk-connected': 'bulk',
  synced: 'sync',
  transmitted: 'transmit',
} as const satisfies Record<Answer, string>;

const MAY_FAIL_UNASKED: ReadonlySet<PrimaryStep> = new Set(['gate', 'disks', 'resume']);

export class PrimaryMachine implements Machine<PrimaryEvent, PrimaryEffect> {
  private readonly context: PrimaryContext;
  private readonly vm: VmControl;
  private readonly capture: Capture;
  private session: PrimarySession | null = null;
  private link: 'idle' | 'connecting' | 'up' = 'idle';
  private connectAtMs: number | null = null;
  /** Sessions in a row that ended through no fault of the network. */
  private failures = 0;
  /** Why protection ends for good, once it does. */
  private leaving: { outcome: Outcome; reason: string } | null = null;
  /** Something of ours, or of an earlier agent that is known to be harmless, lies under the VM's NICs. */
  private handOverDue = false;
  private finished = false;
  private word: StateWord = 'STARTING';
  private cause = '';
  private shown = '';
  private epochValue = 0;
  private committedAtMs: number | null = null;

  constructor(options: PrimaryOptions) {
    this.context = new PrimaryContext(options);
    this.vm = new VmControl(this.context);
    this.capture = new Capture(this.context, this.vm);
  }

  get state(): StateWord {
    return this.word;
  }

  get reason(): string {
    return this.vm.trouble ?? this.session?.trouble ?? this.cause;
  }

  get generation(): number {
    return this.context.generation;
  }

  /** The last committed epoch of the session in progress, or of the last one; 0 before the first. */
  get epoch(): number {
    return this.epochValue;
  }

  get lastCommittedAtMs(): number | null {
    return this.committedAtMs;
  }

  get nextTimepointMs(): number | null {
    if (this.finished) return null;
    const dueMs = [this.session?.nextTimepointMs, this.vm.retryMs, this.connectableAtMs()];
    const earliestMs = Math.min(...dueMs.map((at) => at ?? Number.POSITIVE_INFINITY));
    return earliestMs === Number.POSITIVE_INFINITY ? null : earliestMs;
  }

  /** Throws "invalid transition [state -> event]" for an event that the shell can't rightly have sent. After `finished` nothing matters. */
  step(event: PrimaryEvent): PrimaryEffect[] {
    if (this.finished) return [];
    this.context.nowMs = event.nowMs;
    this.handle(event);
    this.advance();
    return this.context.takeEffects();
  }

  // --- events ----------------------------------------------------------------------------------------------------------------------

  private handle(event: PrimaryEvent): void {
    switch (event.type) {
      case 'start':
        this.onStart();
        break;
      case 'tick':
        return;
      case 'peer-connected':
        this.onPeerConnected(event.lineage);
        break;
      case 'peer-lost':
        this.onPeerLost(event.reason);
        break;
      case 'peer-silent':
        this.session?.onPeerSilent(event.reason);
        break;
      case 'peer-malformed':
        this.session?.onMalformed(event.reason);
        break;
      case 'message':
        // One that was under way when we disconnected has no session any more.
        this.session?.onMessage(event.message);
        break;
      case 'output-held':
        this.session?.onOutputHeld();
        break;
      case 'pressure':
        this.session?.ask('now');
        break;
      case 'command':
        if (event.command === 'stop') this.onStopCommand();
        else this.session?.ask('soon');
        break;
      case 'vm-paused':
      case 'vm-resumed':
      case 'vm-reset':
      case 'vm-shutdown':
      case 'vm-lost':
        this.onVm(event);
        break;
      default:
        this.onAnswer(event);
        break;
    }
  }

  private onStart(): void {
    if (this.connectAtMs !== null || this.link !== 'idle') invalidTransition(this.word, 'start');
    this.connectAtMs = this.context.nowMs;
    if (this.context.foreignGate)
      this.setState('BLOCKED', 'gate of an earlier agent found; waiting for the peer');
    else this.setState('STARTING', 'connecting to the secondary');
  }

  private onPeerConnected(lineage: Lineage): void {
    if (this.link !== 'connecting') invalidTransition(`link ${this.link}`, 'peer-connected');
    this.link = 'up';
    this.session = new PrimarySession(this.context, this.vm, this.capture, lineage);
  }

  private onPeerLost(reason: string): void {
    if (this.session !== null) {
      this.session.end ??= { cause: 'peer', reason, tell: null };
      this.link = 'idle';
    } else if (this.link === 'connecting') {
      this.link = 'idle';
      this.retry(this.timings.reconnectMs);
      this.alone(`no secondary: ${reason}`);
    }
  }

  private onStopCommand(): void {
    // A person's word opens even the gate of an earlier agent.
    if (this.context.foreignGate) this.handOverDue = true;
    this.context.foreignGate = false;
    // A VM that has shut down still stands only because of us.
    if (this.vm.shutDown) this.leave('guest-shutdown', 'the guest shut down', 'shutdown');
    else this.leave('stopped', 'stopped by command', 'detach');
  }

  private onVm(event: PrimaryEvent): void {
    switch (event.type) {
      case 'vm-paused':
        this.vm.onPausedByOthers();
        this.session?.onPausedByOthers();
        break;
      case 'vm-resumed':
        this.capture.onResumedByOthers();
        this.vm.onResumedByOthers();
        this.session?.onResumedByOthers();
        break;
      case 'vm-reset':
        this.session?.ask('soon');
        break;
      case 'vm-shutdown':
        if (event.gone) this.onVmGone('guest-shutdown', 'the guest shut down');
        else this.onGuestShutdown();
        break;
      case 'vm-lost':
        this.onVmGone('vm-lost', event.reason);
        break;
    }
  }

  private onGuestShutdown(): void {
    this.vm.onShutdown();
    // With a standby the session makes the last checkpoint; without one there is nobody to wait for.
    if (this.word === 'PROTECTED') return;
    this.leave('guest-shutdown', 'the guest shut down', 'shutdown');
  }

  private onVmGone(outcome: 'guest-shutdown' | 'vm-lost', reason: string): void {
    if (this.session !== null) {
      const { session } = this;
      this.context.send({ type: 'bye', reason: outcome === 'vm-lost' ? 'qemu-lost' : 'shutdown' });
      this.disconnect(session, reason);
    }
    this.finish(outcome, reason);
  }

  private onAnswer(event: PrimaryEvent): void {
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
        this.session?.onStopped(event.wasRunning);
        break;
      case 'captured':
        steps.end('capture', event.epoch);
        this.capture.onCaptured(event.pages);
        this.session?.onCaptured();
        break;
      case 'saved':
        steps.end('save', event.epoch);
        this.capture.onSaved(event.vmstateBytes);
        break;
      case 'step-failed':
        this.onStepFailed(event);
        break;
      case 'gate-installed':
      case 'disks-synced':
      case 'protected':
      case 'bulk-connected':
      case 'synced':
      case 'transmitted':
        steps.end(STEP_OF[event.type], event.type === 'transmitted' ? event.epoch : undefined);
        // Without a session it is the late answer of one that has ended.
        this.session?.onAnswer(event.type);
        break;
    }
  }

  private onStepFailed(event: PrimaryEvent & { type: 'step-failed' }): void {
    const { step, reason } = event;
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
      case 'protect':
        this.vm.reclaim();
        this.session?.onStepFailed(step, reason);
        break;
      default:
        this.session?.onStepFailed(step, reason);
        break;
    }
  }

  // --- progress --------------------------------------------------------------------------------------------------------------------

  private advance(): void {
    this.vm.poll();
    this.session?.advance();
    if (this.session !== null) this.follow(this.session);
    if (this.session === null && !this.finished) this.settle();
    this.showState();
  }

  private follow(session: PrimarySession): void {
    if (session.ready && this.context.foreignGate) {
      this.context.foreignGate = false;
      this.handOverDue = true;
    }
    if (this.context.steps.has('gate')) this.handOverDue = true;
    if (session.epoch > 0) {
      this.epochValue = session.epoch;
      this.committedAtMs = session.committedAtMs;
    }
    if (session.end !== null) this.endSession(session, session.end);
    else if (session.epoch > 0) this.setState('PROTECTED', 'the standby holds the last checkpoint');
    else if (session.ready) this.setState('SYNCING', 'the first copy is on its way to the secondary');
  }

  private endSession(session: PrimarySession, end: SessionEnd): void {
    if (end.tell !== null) this.context.send(end.tell);
    this.disconnect(session, end.reason);
    this.session = null;
    this.capture.cancel(end.reason);
    // INVARIANT 4: whoever goes on without the standby does so in a generation of its own.
    if (session.ready) this.context.generation++;
    if (end.cause === 'fenced') {
      this.setState('FENCED', end.reason);
      this.context.emit({ type: 'quit-vm' });
      this.finish('fenced', end.reason);
      return;
    }
    if (this.vm.shutDown) this.leaving = { outcome: 'guest-shutdown', reason: 'the guest shut down' };
    this.afterSession(session, end);
  }

  private afterSession(session: PrimarySession, end: SessionEnd): void {
    this.alone(end.reason);
    if (session.epoch > 0 && this.context.nowMs - session.beganMs >= SLOW_RETRY_MS) this.failures = 0;
    switch (end.cause) {
      case 'incompatible':
        this.retry(SLOW_RETRY_MS);
        break;
      case 'split-brain':
        this.setState('BLOCKED', `split brain: ${end.reason}; one of the two VMs must be ended by a person`);
        this.retry(SLOW_RETRY_MS);
        break;
      case 'stale':
        if (session.staleSince !== null) this.context.generation = session.staleSince + 1;
        this.retry(this.timings.reconnectMs);
        break;
      default:
        this.retry(this.timings.reconnectMs * Math.min(2 ** this.failures, BACKOFF_MAX));
        if (end.cause === 'local') this.failures++;
    }
  }

  private disconnect(session: PrimarySession, reason: string): void {
    if (this.link === 'up') this.context.emit({ type: 'disconnect', reason });
    this.link = 'idle';
    if (session.ready) this.context.emit({ type: 'disconnect-bulk' });
  }

  /**
   * Without a session: brings what is under way to its end, then gives the VM its run state (INVARIANT 7) and its network back, and only then
   * finishes or looks for the next peer.
   */
  private settle(): void {
    const { steps } = this.context;
    this.capture.advance();
    // A capture that came after the hand-over would close the gate again, a stop after the resume would hold the VM.
    if (steps.has('gate', 'disks', 'protect', 'stop', 'save', 'capture')) return;
    this.vm.resume();
    if (this.handOverDue && !steps.has('hand-over')) {
      this.handOverDue = false;
      steps.begin('hand-over');
      this.context.emit({ type: 'hand-over' });
    }
    const at = this.connectableAtMs();
    if (this.leaving !== null) this.finishIfSettled(this.leaving);
    else if (at !== null && at <= this.context.nowMs) this.connect();
  }

  private finishIfSettled(leaving: { outcome: Outcome; reason: string }): void {
    if (this.vm.stoppedByUs || this.context.steps.has('resume', 'hand-over')) return;
    if (this.link === 'connecting') this.context.emit({ type: 'disconnect', reason: leaving.reason });
    if (leaving.outcome === 'guest-shutdown') this.context.emit({ type: 'quit-vm' });
    this.finish(leaving.outcome, leaving.reason);
  }

  private connect(): void {
    this.link = 'connecting';
    this.context.emit({ type: 'connect' });
  }

  /** When `connect` may be asked for: only once every step of the last session has been answered and the VM is in nobody's hand. */
  private connectableAtMs(): number | null {
    const idle = this.session === null && this.link === 'idle' && this.leaving === null;
    return idle && this.context.steps.size === 0 && !this.vm.stoppedByUs ? this.connectAtMs : null;
  }

  // --- endings and state -----------------------------------------------------------------------------------------------------------

  private get timings(): PrimaryOptions['timings'] {
    return this.context.options.timings;
  }

  private retry(afterMs: number): void {
    this.connectAtMs = this.context.nowMs + afterMs;
  }

  /** For good, as soon as the VM is settled. A shutdown outweighs the command to stop. */
  private leave(outcome: Outcome, reason: string, bye: ByeReason): void {
    this.leaving = { outcome, reason };
    if (this.session !== null)
      this.session.end ??= { cause: 'local', reason, tell: { type: 'bye', reason: bye } };
  }

  private finish(outcome: Outcome, reason: string): void {
    this.finished = true;
    this.session = null;
    if (outcome !== 'fenced') this.setState('STOPPED', reason);
    this.showState();
    this.context.emit({ type: 'finished', outcome, reason });
  }

  /** Without a standby. The gate of an earlier agent never opens by itself. */
  private alone(reason: string): void {
    if (this.context.foreignGate)
      this.setState('BLOCKED', `gate of an earlier agent found; waiting for the peer: ${reason}`);
    else this.setState('EXPOSED', reason);
  }

  private setState(word: StateWord, cause: string): void {
    this.word = word;
    this.cause = cause;
  }

  private showState(): void {
    const shown = `${this.word} ${this.reason}`;
    if (shown === this.shown) return;
    this.shown = shown;
    this.context.emit({ type: 'state', state: this.word, reason: this.reason });
  }
}
