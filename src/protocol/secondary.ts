/** The secondary's machine: one session after the other, and the take-over. docs/protocol.md, docs/architecture.md. */
import { invalidTransition } from './errors.ts';
import type {
  ClaimEvent,
  Machine,
  SecondaryEffect,
  SecondaryEvent,
  SecondaryOptions,
  StateWord,
} from './machine.ts';
import { type Body, GENERATION_MAX, type Message } from './messages.ts';
import { SecondaryContext } from './secondary-context.ts';
import { misfit } from './secondary-hello.ts';
import { type SecondaryEnd, SecondarySession } from './secondary-session.ts';
import { Standby } from './standby.ts';
import { TakeOver } from './take-over.ts';

/** A connection on which nobody says HELLO ends after this. */
const HELLO_TIMEOUT_MS = 5000;

type Outcome = (SecondaryEffect & { type: 'finished' })['outcome'];

export class SecondaryMachine implements Machine<SecondaryEvent, SecondaryEffect> {
  private readonly context: SecondaryContext;
  private readonly standby: Standby;
  private session: SecondarySession | null = null;
  /** When the control connection came, while there is one. */
  private connectedAtMs: number | null = null;
  /** Whether the VM is a standby, on its way to run, running, or in an unknown state because `cont` failed. */
  private life: 'standby' | 'taking-over' | 'running' | 'unclear' = 'standby';
  /** While `life` is taking-over. */
  private takeOver: TakeOver | null = null;
  /** A primary that lives has been given until then to come back, or to claim its next generation. */
  private claimAtMs: number | null = null;
  /** A person has decided in the witness's place: what it holds may say otherwise. */
  private overridden = false;
  private started = false;
  private finished = false;
  private word: StateWord = 'STARTING';
  private cause = '';
  private shown = '';

  constructor(options: SecondaryOptions) {
    this.context = new SecondaryContext(options);
    this.standby = new Standby(this.context);
  }

  get state(): StateWord {
    return this.word;
  }

  get reason(): string {
    return this.cause;
  }

  get generation(): number {
    return this.context.generation;
  }

  /** The VM runs in a generation that nobody else can have won. */
  get undisputed(): boolean {
    return this.life === 'running' && !this.overridden;
  }

  /** The last committed epoch, the one that a failover would resume; 0 while there is none. */
  get epoch(): number {
    return this.standby.epoch ?? 0;
  }

  get lastCommittedAtMs(): number | null {
    return this.standby.committedAtMs;
  }

  get nextTimepointMs(): number | null {
    if (this.finished) return null;
    const silentMs = this.connectedAtMs === null ? null : this.connectedAtMs + HELLO_TIMEOUT_MS;
    const sessionMs = this.session === null ? silentMs : this.session.nextTimepointMs;
    const dueMs = [sessionMs, this.claimAtMs, this.takeOver?.retryAtMs];
    const earliestMs = Math.min(...dueMs.map((at) => at ?? Number.POSITIVE_INFINITY));
    return earliestMs === Number.POSITIVE_INFINITY ? null : earliestMs;
  }

  /** Throws "invalid transition [state -> event]" for an event that the shell can't rightly have sent. After `finished` nothing matters. */
  step(event: SecondaryEvent): SecondaryEffect[] {
    if (this.finished) return [];
    this.context.nowMs = event.nowMs;
    this.handle(event);
    if (!this.finished) this.advance();
    return this.context.takeEffects();
  }

  // --- events ----------------------------------------------------------------------------------------------------------------------

  private handle(event: SecondaryEvent): void {
    switch (event.type) {
      case 'start':
        if (this.started) invalidTransition(this.word, 'start');
        this.started = true;
        this.setState('STARTING', 'waiting for a primary');
        break;
      case 'tick':
        return;
      case 'peer-connected':
        if (this.connectedAtMs !== null) invalidTransition('connected', 'peer-connected');
        this.connectedAtMs = event.nowMs;
        return;
      case 'peer-lost':
        this.connectedAtMs = null;
        if (this.session !== null) this.session.end ??= { cause: 'lost', reason: event.reason, tell: null };
        return;
      case 'peer-silent':
        this.session?.onPeerSilent(event.reason, event.heardMs);
        break;
      case 'peer-malformed':
        this.refuse('protocol', event.reason);
        break;
      case 'message':
        this.onMessage(event.message);
        break;
      case 'stream-failed':
        this.session?.fail('stream-failed', event.reason);
        break;
      case 'vm-lost':
        this.onVmLost(event.reason);
        break;
      case 'command':
        if (event.command === 'stop') this.onStopCommand();
        else this.onFailoverCommand(event.command === 'force-failover');
        break;
      case 'claim-won':
      case 'claim-lost':
      case 'claim-unanswered':
        this.onClaim(event);
        break;
      default:
        this.onAnswer(event);
        break;
    }
  }

  private onMessage(message: Message): void {
    // One that was under way when we disconnected has no connection any more.
    if (this.connectedAtMs === null) return;
    const { body } = message;
    if (message.vmId !== this.context.options.vmId) {
      this.refuse('wrong-vm', `this is not VM ${message.vmId}`);
    } else if (this.session !== null) {
      this.session.onMessage(message);
    } else if (body.type === 'hello') {
      this.onHello(body, message.generation);
    } else {
      this.refuse('protocol', `${body.type} before HELLO`);
    }
  }

  private onHello(hello: Body & { type: 'hello' }, generation: number): void {
    const own = this.context.generation;
    const unfit = misfit(hello, this.context.options);
    if (unfit !== null) {
      this.refuse('incompatible', unfit);
    } else if (this.life === 'taking-over' && !this.mayYieldTo(generation)) {
      this.refuse('taking-over', 'this standby is taking over');
    } else if (this.life === 'unclear') {
      this.refuse('blocked', this.cause);
    } else if (this.life === 'running') {
      // INVARIANT 4: the newest generation runs; an older primary learns here that it was superseded.
      this.refuseStale('this VM runs', own, 'running');
    } else if (generation < own) {
      this.refuseStale(`generation ${generation} is older than ${own}`, own, 'standby');
    } else if (generation >= GENERATION_MAX) {
      this.refuse('protocol', `generation ${generation} leaves no room for the next ones`);
    } else {
      this.yieldToPrimary();
      this.context.generation = generation;
      this.session = new SecondarySession(this.context, this.standby, hello);
    }
  }

  /** INVARIANT 4: a primary that comes back while the witness is silent has won a generation since, so our claim can only be lost. */
  private mayYieldTo(generation: number): boolean {
    return this.takeOver?.undecided === true && generation > this.standby.source.generation;
  }

  private yieldToPrimary(): void {
    this.claimAtMs = null;
    if (this.takeOver === null) return;
    this.takeOver.withdraw();
    this.endTakeOver();
  }

  private endTakeOver(): void {
    this.takeOver = null;
    this.life = 'standby';
  }

  private refuse(code: string, message: string): void {
    this.refuseWith({ type: 'error', code, message: message.slice(0, 512) }, message);
  }

  private refuseStale(message: string, generation: number, role: 'standby' | 'running'): void {
    this.refuseWith({ type: 'error', code: 'stale-generation', message, generation, role }, message);
  }

  /** ERROR and the end of the connection; a session in progress ends with it. */
  private refuseWith(tell: Body, reason: string): void {
    if (this.session !== null) {
      this.session.end ??= { cause: 'alive', reason, tell };
    } else {
      this.context.send(tell);
      this.disconnect(reason);
    }
  }

  private onVmLost(reason: string): void {
    if (this.session !== null) {
      this.context.send({ type: 'error', code: 'vm-lost', message: reason.slice(0, 512) });
    }
    this.finish('vm-lost', reason);
  }

  private onStopCommand(): void {
    if (this.session !== null) this.context.send({ type: 'bye', reason: 'detach' });
    this.finish('stopped', 'stopped by command');
  }

  private onFailoverCommand(force: boolean): void {
    if (this.life === 'running') return;
    if (this.takeOver !== null) {
      const { undecided } = this.takeOver;
      if (this.takeOver.order(force))
        this.setState('TAKING-OVER', `at epoch ${this.standby.epoch}: ordered by a person`);
      if (force && undecided) this.grant();
    } else if (this.session !== null) {
      this.setState(this.word, 'failover refused: the primary is connected');
    } else if (!force && this.standby.epoch !== null && this.context.options.failover === 'ordered') {
      const order = 'without a witness only `colo-agent failover --force NAME` promotes it';
      this.setState(this.word, `failover refused: ${order}, when the primary is known not to run`);
    } else {
      this.beginTakeOver('ordered by a person', force);
    }
  }

  /** Without the witness's word. */
  private grant(): void {
    this.overridden ||= this.context.options.failover === 'claimed';
    this.standby.won ??= this.context.generation + 1;
  }

  private onClaim(event: ClaimEvent): void {
    const { takeOver } = this;
    // The last word on a claim that has been withdrawn may still be on its way.
    if (takeOver === null || !takeOver.undecided) return;
    if (event.type === 'claim-won') {
      takeOver.onWon(event.generation);
      this.setState('TAKING-OVER', `at epoch ${this.standby.epoch}: ${takeOver.reason}`);
    } else if (event.type === 'claim-unanswered') {
      const what = `can't take over at epoch ${this.standby.epoch} before the witness answers`;
      this.setState('BLOCKED', `${what}: ${event.reason} (${takeOver.reason})`);
    } else {
      this.endTakeOver();
      // INVARIANT 4: what the world has seen since is newer than this checkpoint.
      this.standby.discard();
      this.setState('STARTING', `waiting for a primary: ${event.reason}`);
    }
  }

  private onAnswer(event: SecondaryEvent): void {
    const { steps } = this.context;
    switch (event.type) {
      case 'compared':
        steps.end('compare');
        this.session?.onCompared(event.difference);
        break;
      case 'session-opened':
        steps.end('open-session');
        this.session?.onOpened(event.bulkToken, event.lineages);
        break;
      case 'session-failed':
        steps.end('open-session');
        this.session?.onOpenFailed(event.reason);
        break;
      case 'staged':
        this.session?.onStaged(event.epoch, event.pages, event.vmstateBytes);
        break;
      case 'flushed':
        this.standby.onFlushed(event.epoch);
        break;
      case 'loaded':
        this.standby.onLoaded(event.epoch);
        this.session?.onLoaded(event.epoch);
        break;
      case 'flush-failed':
        this.onApplyFailed('flush', event.epoch, event.reason);
        break;
      case 'load-failed':
        this.onApplyFailed('load', event.epoch, event.reason);
        break;
      case 'ram-differs':
        this.onRamDiffers(event.epoch, event.reason);
        break;
      case 'disks-settled':
        steps.end('settle-disks');
        this.takeOver?.onSettled();
        break;
      case 'settle-failed':
        steps.end('settle-disks');
        this.onSettleFailed(event.reason);
        break;
      case 'promoted':
        steps.end('promote');
        this.life = 'running';
        this.takeOver = null;
        this.context.generation = this.standby.won ?? this.context.generation;
        this.setState('RUNNING', 'took over');
        break;
      case 'not-settled':
      case 'not-promoted':
        steps.end(event.type === 'not-settled' ? 'settle-disks' : 'promote');
        if (this.takeOver !== null) this.setState('BLOCKED', this.takeOver.postpone(event.reason));
        break;
      case 'promote-failed':
        steps.end('promote');
        this.life = 'unclear';
        this.takeOver = null;
        this.setState('BLOCKED', `the VM could not be started: ${event.reason}`);
        break;
    }
  }

  private onApplyFailed(step: 'flush' | 'load', epoch: number, reason: string): void {
    this.standby.onFailed(step, epoch, reason);
    this.session?.fail('load-failed', `${step} of epoch ${epoch}: ${reason}`);
  }

  private onRamDiffers(epoch: number, reason: string): void {
    this.standby.onDiffers(epoch, reason);
    this.session?.fail('scrub', `epoch ${epoch}: ${reason}`);
    if (this.session === null && this.life === 'standby') this.setState('BLOCKED', this.refusal);
  }

  private onSettleFailed(reason: string): void {
    if (this.takeOver === null) return;
    this.yieldToPrimary();
    // INVARIANT 2: a disk that has lost a write on its way to the medium can only be copied again.
    this.standby.discard();
    this.setState('BLOCKED', `failover impossible: the disks could not be synced: ${reason}`);
  }

  // --- progress --------------------------------------------------------------------------------------------------------------------

  private advance(): void {
    this.session?.advance();
    if (this.session !== null) this.follow(this.session);
    else this.checkSilentConnection();
    if (this.claimAtMs !== null && this.context.nowMs >= this.claimAtMs) this.claimAfterSilence();
    if (this.takeOver !== null) this.advanceTakeOver(this.takeOver);
    this.showState();
  }

  private follow(session: SecondarySession): void {
    if (session.end !== null) this.endSession(session, session.end);
    else if (session.phase === 'failing')
      this.setState(
        this.standby.condemned === null ? this.word : 'BLOCKED',
        `waiting for the primary: ${session.failure}`,
      );
    else if (session.epoch > 0) this.followStandby();
    else if (session.touched) this.setState('SYNCING', 'the first copy is coming in');
    else this.setState('STARTING', 'comparing with the primary');
  }

  private endSession(session: SecondarySession, end: SecondaryEnd): void {
    if (end.tell !== null) this.context.send(end.tell);
    this.disconnect(end.reason);
    // INVARIANT 2: what is staged and not committed goes, whole. One that was failing has closed it already.
    if (session.phase === 'open' || session.phase === 'opening') this.context.emit({ type: 'close-session' });
    this.session = null;
    if (end.cause === 'shutdown') {
      this.context.emit({ type: 'quit-vm' });
      this.finish('guest-shutdown', end.reason);
      return;
    }
    if (end.cause === 'detached') {
      this.standby.discard();
      this.setState('STARTING', 'primary detached; waiting for a primary');
      return;
    }
    const lost = end.cause === 'lost' || end.cause === 'qemu-lost';
    if (this.standby.epoch !== null && this.maySucceed(session, lost)) this.beginTakeOver(end.reason, false);
    else this.waitAfter(end, lost);
  }

  /**
   * The witness knows whether the checkpoint is the newest state that the world has seen. Without one only that of this very session is, and only if the
   * primary hasn't gone on alone.
   */
  private maySucceed(session: SecondarySession, lost: boolean): boolean {
    const { failover } = this.context.options;
    return lost && (failover === 'claimed' || (failover === 'granted' && session.epoch > 0));
  }

  private waitAfter(end: SecondaryEnd, lost: boolean): void {
    const what = lost ? 'primary lost' : 'the primary goes on alone';
    const { failover, timings } = this.context.options;
    if (this.standby.epoch !== null && failover === 'claimed') {
      this.claimAtMs = this.context.nowMs + 2 * timings.peerTimeoutMs;
      this.setState('STANDBY', `${what} (${end.reason}); if it stays away the witness is asked`);
    } else if (this.standby.epoch !== null) {
      this.setState('STANDBY', `${what} (${end.reason}); failover waits for a person`);
    } else if (lost || this.standby.condemned !== null) {
      this.setState('BLOCKED', `${what} (${end.reason}); ${this.refusal}`);
    } else {
      this.setState('STARTING', `waiting for a primary; the last session ended: ${end.reason}`);
    }
  }

  private checkSilentConnection(): void {
    if (this.connectedAtMs === null) return;
    if (this.context.nowMs >= this.connectedAtMs + HELLO_TIMEOUT_MS) {
      this.disconnect('no HELLO came');
    }
  }

  // --- take-over -------------------------------------------------------------------------------------------------------------------

  private beginTakeOver(reason: string, force: boolean): void {
    this.claimAtMs = null;
    if (this.standby.epoch === null) {
      this.setState('BLOCKED', `failover refused: ${this.refusal}`);
      return;
    }
    this.life = 'taking-over';
    this.takeOver = new TakeOver(this.context, this.standby, reason);
    if (force || this.context.options.failover !== 'claimed') this.grant();
    this.setState('TAKING-OVER', `at epoch ${this.standby.epoch}: ${reason}`);
  }

  /** Why there is nothing to take over. */
  private get refusal(): string {
    const { condemned } = this.standby;
    if (condemned === null) return 'there is no complete checkpoint to take over';
    return `RAM here is not the primary's (${condemned})`;
  }

  private claimAfterSilence(): void {
    this.claimAtMs = null;
    if (this.session === null && this.life === 'standby') this.beginTakeOver('the primary stays away', false);
  }

  private advanceTakeOver(takeOver: TakeOver): void {
    const impossible = takeOver.advance();
    if (impossible === null) return;
    takeOver.withdraw();
    this.endTakeOver();
    this.setState('BLOCKED', impossible);
  }

  // --- endings and state -----------------------------------------------------------------------------------------------------------

  private followStandby(): void {
    if (this.word !== 'STANDBY') this.setState('STANDBY', 'holds the last checkpoint');
  }

  private disconnect(reason: string): void {
    if (this.connectedAtMs !== null) this.context.emit({ type: 'disconnect', reason });
    this.connectedAtMs = null;
  }

  private finish(outcome: Outcome, reason: string): void {
    this.disconnect(reason);
    if (this.session?.phase === 'open' || this.session?.phase === 'opening') {
      this.context.emit({ type: 'close-session' });
    }
    this.session = null;
    this.finished = true;
    this.setState('STOPPED', reason);
    this.showState();
    this.context.emit({ type: 'finished', outcome, reason });
  }

  private setState(word: StateWord, cause: string): void {
    this.word = word;
    this.cause = cause;
  }

  private showState(): void {
    const shown = `${this.word} ${this.cause}`;
    if (shown === this.shown) return;
    this.shown = shown;
    this.context.emit({ type: 'state', state: this.word, reason: this.cause });
  }
}
