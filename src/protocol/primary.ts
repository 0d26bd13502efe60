/** The primary's machine: finding a peer, one session after the other, and leaving the VM in order. docs/protocol.md, docs/architecture.md. */
import { Authority } from './authority.ts';
import type {
  ClaimEvent,
  Machine,
  PrimaryEffect,
  PrimaryEvent,
  PrimaryOptions,
  StateWord,
  Superseded,
} from './machine.ts';
import type { ByeReason, Lineage } from './messages.ts';
import { Answers } from './primary-answers.ts';
import { Capture } from './primary-capture.ts';
import { PrimaryContext } from './primary-context.ts';
import { Departure, type Outcome } from './primary-departure.ts';
import { Link } from './primary-link.ts';
import { PrimarySession, type SessionEnd } from './primary-session.ts';
import { VmControl } from './primary-vm.ts';

export class PrimaryMachine implements Machine<PrimaryEvent, PrimaryEffect> {
  private readonly context: PrimaryContext;
  private readonly vm: VmControl;
  private readonly capture: Capture;
  private readonly answers: Answers;
  private readonly authority: Authority;
  private readonly departure: Departure;
  private readonly link: Link;
  private session: PrimarySession | null = null;
  /** A person waits for the end of a planned failover. */
  private drilling = false;
  private finished = false;
  private word: StateWord = 'STARTING';
  private cause = '';
  private shown = '';
  /** Why there is no session. */
  private missing = 'no standby yet';
  private epochValue = 0;
  private committedAtMs: number | null = null;

  constructor(options: PrimaryOptions) {
    this.context = new PrimaryContext(options);
    this.vm = new VmControl(this.context);
    this.capture = new Capture(this.context, this.vm);
    this.answers = new Answers(this.context, this.vm, this.capture);
    this.authority = new Authority(this.context);
    this.departure = new Departure(this.context, this.vm, this.authority);
    this.link = new Link(this.context);
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
    const dueMs = [
      this.session?.nextTimepointMs,
      this.vm.retryMs,
      this.authority.nextTimepointMs,
      this.connectableAtMs(),
    ];
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
        if (event.command === 'checkpoint') this.session?.ask('soon');
        else if (event.command === 'drill') this.onDrillCommand();
        else this.onStopCommand(event.command === 'force-stop');
        break;
      case 'claim-won':
      case 'claim-lost':
      case 'claim-unanswered':
        this.onClaim(event);
        break;
      case 'superseded':
        this.onSuperseded(event);
        break;
      case 'vm-paused':
      case 'vm-resumed':
      case 'vm-reset':
      case 'vm-shutdown':
      case 'vm-lost':
        this.onVm(event);
        break;
      default:
        this.answers.onAnswer(event, this.session);
        break;
    }
  }

  private onStart(): void {
    this.link.start(this.word);
    this.setState(...this.authority.start());
  }

  // --- the witness's word ----------------------------------------------------------------------------------------------------------

  private onClaim(event: ClaimEvent): void {
    if (!this.authority.onAnswer(event)) return;
    if (event.type === 'claim-lost') this.onClaimLost(event);
    else if (event.type === 'claim-won' && event.kind !== 'protected') this.onAlone();
    else if (this.session === null) this.showAlone();
  }

  private onAlone(): void {
    this.context.handedOver = false;
    if (this.departure.adoptForeignGate()) this.missing = 'the gate of an earlier agent was found';
    if (this.word === 'STARTING') this.setState('STARTING', 'connecting to the secondary');
    else this.showAlone();
  }

  private onClaimLost({ kind, reason }: ClaimEvent & { type: 'claim-lost' }): void {
    if (kind === 'protected') {
      // Somebody has changed the record; the claim that follows the session's end tells who runs.
      this.session?.onStepFailed('claim', reason);
    } else if (this.context.handedOver) {
      // INVARIANT 4: it has stood since HANDOVER, so that whatever the winner runs is no older. A person's force, or a refusal, would have let it go on.
      this.endDrill(reason); // nobody has told when it ran there
      this.leaveVm(reason);
    } else if (this.authority.everWon || this.context.foreignGate) {
      this.fence(reason);
    } else if (this.context.options.tookPart) {
      // INVARIANT 4: its host came back and started it by itself. What is newer runs elsewhere; a person may want to look at this one.
      this.setState('FENCED', reason);
      this.context.emit({ type: 'stop-vm' });
      this.finish('stale-twin', reason);
    } else {
      this.finish('refused', reason);
    }
  }

  /** INVARIANT 4: whatever led to it, a person's force say, of two that run with an open gate the older generation ends. */
  private onSuperseded({ generation, reason }: Superseded): void {
    // Whether the standby that a drill has given the VM to runs it, its answer tells, or a claim.
    if (this.context.handedOver) return;
    if (!this.authority.everWon || generation <= this.context.generation) return;
    if (this.session === null) this.fence(reason);
    else this.session.end ??= { cause: 'fenced', reason, tell: null };
  }

  /** INVARIANT 4: somebody else runs in a newer generation. Our gate isn't opened on the way. */
  private fence(reason: string): void {
    this.setState('FENCED', reason);
    this.context.emit({ type: 'quit-vm' });
    this.finish('fenced', reason);
  }

  // --- the peer and the VM ---------------------------------------------------------------------------------------------------------

  private onPeerConnected(lineage: Lineage): void {
    this.link.onConnected();
    this.session = new PrimarySession(this.context, this.vm, this.capture, lineage);
  }

  private onPeerLost(reason: string): void {
    if (this.session !== null) {
      this.session.end ??= { cause: 'peer', reason, tell: null };
      this.link.state = 'idle';
    } else if (this.link.state === 'connecting') {
      this.link.state = 'idle';
      this.link.retry();
      this.alone(`no secondary: ${reason}`);
    }
  }

  private onStopCommand(force: boolean): void {
    if (force) {
      this.authority.force();
      this.context.handedOver = false;
    }
    // Without a witness a person's word opens even the gate of an earlier agent.
    if (this.authority.mayOpenGate) this.departure.adoptForeignGate();
    // A VM that has shut down still stands only because of us.
    if (this.vm.shutDown) this.leave('guest-shutdown', 'the guest shut down', 'shutdown');
    else this.leave('stopped', 'stopped by command', 'detach');
  }

  private onDrillCommand(): void {
    const obstacle = this.obstacleToDrill();
    this.drilling ||= obstacle === null;
    if (obstacle === null) this.session?.beginDrill();
    else this.context.emit({ type: 'drilled', failure: obstacle });
  }

  private obstacleToDrill(): string | null {
    if (this.drilling || this.context.handedOver) return 'a drill is under way already';
    if (this.session === null || this.word !== 'PROTECTED')
      return `only a PROTECTED VM can be handed over; this one is ${this.word}: ${this.reason}`;
    if (this.departure.leaving !== null || this.vm.shutDown) return 'protection is about to end';
    return this.vm.pausedByOthers ? 'the VM is paused: resume it first' : null;
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
    if (this.session !== null && this.session.epoch > 0) return;
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

  // --- progress --------------------------------------------------------------------------------------------------------------------

  private advance(): void {
    this.vm.poll();
    this.overrideWhenDue();
    this.session?.advance();
    if (this.session !== null) this.follow(this.session);
    if (this.session === null && !this.finished) this.settle();
    this.followDrill();
    this.showState();
  }

  private overrideWhenDue(): void {
    const silence = this.authority.override();
    if (silence === null) return;
    this.departure.adoptForeignGate();
    this.departure.leaveUnheard(silence);
  }

  private follow(session: PrimarySession): void {
    if (session.ready) this.departure.adoptForeignGate();
    this.departure.noteGate();
    if (session.epoch > 0) {
      this.epochValue = session.epoch;
      this.committedAtMs = session.committedAtMs;
    }
    if (session.end !== null) this.endSession(session, session.end);
    else if (session.drill?.offered === true) this.followHandover(session, session.drill.overdue);
    else if (session.epoch > 0) this.followProtected(session);
    else if (session.ready) this.setState('SYNCING', 'the first copy is on its way to the secondary');
  }

  /** Held output is released by RECEIVED all the time; but only a standby that the witness knows of can take over. */
  private followProtected(session: PrimarySession): void {
    this.authority.claimProtected(session.node);
    const { isProtected, trouble } = this.authority;
    if (isProtected) this.setState('PROTECTED', 'the standby holds the last checkpoint');
    else if (trouble === null)
      this.setState('SYNCING', 'the standby holds a checkpoint; the witness is told of it');
    else
      this.setState('SYNCING', `the standby may not take over yet: the witness doesn't answer: ${trouble}`);
  }

  private followHandover({ node }: PrimarySession, overdue: boolean): void {
    if (!overdue) this.setState('PROTECTED', `handed over to ${node}; the VM stands here until it answers`);
    else this.setState(...this.authority.describeAlone(`${node} doesn't answer`));
  }

  /** It has come to nothing as soon as no session hands the VM over any more and who goes on is decided, or somebody must be waited for. */
  private followDrill(): void {
    if (!this.drilling) return;
    const hopeful = this.context.handedOver
      ? this.word !== 'BLOCKED'
      : (this.session?.drill ?? null) !== null;
    if (!hopeful) this.endDrill(this.session?.drillFailure || this.reason);
  }

  private endDrill(failure: string | null): void {
    if (this.drilling) this.context.emit({ type: 'drilled', failure });
    this.drilling = false;
  }

  /** INVARIANT 4: the standby runs it; here it stands for good. */
  private leaveVm(reason: string): void {
    this.context.emit({ type: 'leave-vm' });
    this.finish('handed-over', reason);
  }

  private endSession(session: PrimarySession, end: SessionEnd): void {
    if (end.tell !== null) this.context.send(end.tell);
    this.disconnect(session, end.reason);
    this.session = null;
    this.capture.cancel(end.reason);
    if (end.cause === 'handed-over' || (end.cause === 'fenced' && this.context.handedOver)) {
      this.leaveVm(end.reason);
      return;
    }
    // INVARIANT 4: whoever goes on without the standby does so in a generation of its own. Without a witness that is known only when the standby has answered.
    if (session.ready && (this.authority.witnessed || !this.context.handedOver))
      this.authority.claimAlone(this.context.generation + 1);
    if (end.cause === 'fenced') {
      this.fence(end.reason);
      return;
    }
    if (this.vm.shutDown)
      this.departure.leaving = { outcome: 'guest-shutdown', reason: 'the guest shut down' };
    this.afterSession(session, end);
  }

  private afterSession(session: PrimarySession, end: SessionEnd): void {
    this.alone(end.reason);
    if (session.epoch > 0) this.link.onProtectedSince(session.beganMs);
    switch (end.cause) {
      case 'incompatible':
        this.link.retrySlowly();
        break;
      case 'split-brain':
        this.setState(
          'BLOCKED',
          `split brain: ${end.reason}; one of the two VMs must be ended by ${this.judge}`,
        );
        // A host that stood still while it was superseded ends its VM as soon as it has asked.
        if (this.authority.witnessed) this.link.retry();
        else this.link.retrySlowly();
        break;
      case 'stale':
        if (session.staleSince !== null) this.authority.claimAlone(session.staleSince + 1);
        this.link.retry();
        break;
      default:
        this.link.retryAfterSession(end.cause === 'local');
    }
  }

  private get judge(): string {
    return this.authority.witnessed
      ? 'its agent, when that has asked the witness, or by a person'
      : 'a person';
  }

  private disconnect(session: PrimarySession, reason: string): void {
    this.link.disconnect(reason);
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
    if (steps.has('gate', 'disks', 'protect', 'stop', 'stand', 'save', 'capture')) return;
    this.vm.resume();
    this.departure.handOver();
    const at = this.connectableAtMs();
    if (this.departure.leaving !== null && !this.context.handedOver)
      this.finishIfSettled(this.departure.leaving);
    else if (at !== null && at <= this.context.nowMs) this.link.connect();
  }

  private finishIfSettled(leaving: { outcome: Outcome; reason: string }): void {
    if (!this.departure.settled) return;
    this.link.disconnect(leaving.reason);
    if (leaving.outcome === 'guest-shutdown') this.context.emit({ type: 'quit-vm' });
    this.finish(leaving.outcome, leaving.reason);
  }

  /** When `connect` may be asked for: only once every step of the last session has been answered and the VM is in nobody's hand. */
  private connectableAtMs(): number | null {
    const { steps, handedOver } = this.context;
    // A VM that was handed over is asked after, too, even if it is to be left.
    const idle = this.session === null && (this.departure.leaving === null || handedOver);
    const settled = steps.size === 0 && (!this.vm.stoppedByUs || handedOver);
    return idle && settled && this.authority.mayConnect ? this.link.dueMs : null;
  }

  // --- endings and state -----------------------------------------------------------------------------------------------------------

  /** For good, as soon as the VM is settled. A shutdown outweighs the command to stop. */
  private leave(outcome: Outcome, reason: string, bye: ByeReason): void {
    this.departure.leaving = { outcome, reason };
    // A standby that may be about to run the VM is waited for.
    if (this.session !== null && !this.context.handedOver)
      this.session.end ??= { cause: 'local', reason, tell: { type: 'bye', reason: bye } };
  }

  private finish(outcome: Outcome, reason: string): void {
    this.finished = true;
    this.session = null;
    this.endDrill(outcome === 'handed-over' ? null : reason);
    if (this.word !== 'FENCED') this.setState('STOPPED', reason);
    this.showState();
    this.context.emit({ type: 'finished', outcome, reason });
  }

  /** Without a standby. The gate of an earlier agent never opens by itself. */
  private alone(reason: string): void {
    this.missing = reason;
    this.showAlone();
  }

  private showAlone(): void {
    this.setState(...this.authority.describeAlone(this.missing));
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
