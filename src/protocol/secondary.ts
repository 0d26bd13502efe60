/** The secondary's machine: one session after the other, and the take-over. docs/protocol.md, docs/architecture.md. */
import { invalidTransition } from './errors.ts';
import type { Machine, SecondaryEffect, SecondaryEvent, SecondaryOptions, StateWord } from './machine.ts';
import type { Body, Message } from './messages.ts';
import { refusal, refuseHello } from './secondary-admission.ts';
import { SecondaryContext } from './secondary-context.ts';
import { Handover } from './secondary-handover.ts';
import { Life } from './secondary-life.ts';
import { type SecondaryEnd, SecondarySession } from './secondary-session.ts';
import { Standby } from './standby.ts';

/** A connection on which nobody says HELLO ends after this. */
const HELLO_TIMEOUT_MS = 5000;

type Outcome = (SecondaryEffect & { type: 'finished' })['outcome'];

export class SecondaryMachine implements Machine<SecondaryEvent, SecondaryEffect> {
  private readonly context: SecondaryContext;
  private readonly standby: Standby;
  private readonly life: Life;
  private session: SecondarySession | null = null;
  /** When the control connection came, while there is one. */
  private connectedAtMs: number | null = null;
  /** While the primary of the connection waits for what becomes of the VM that it has handed over. */
  private handover: Handover | null = null;
  private started = false;
  private finished = false;

  constructor(options: SecondaryOptions) {
    this.context = new SecondaryContext(options);
    this.standby = new Standby(this.context);
    this.life = new Life(this.context, this.standby);
  }

  get state(): StateWord {
    return this.context.shown.word;
  }

  get reason(): string {
    return this.context.shown.reason;
  }

  get generation(): number {
    return this.context.generation;
  }

  /** The VM runs in a generation that nobody else can have won. */
  get undisputed(): boolean {
    return this.life.undisputed;
  }

  /** A take-over is under way, whatever it waits for. */
  get takesOver(): boolean {
    return this.life.now === 'taking-over';
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
    const lifeMs = this.life.nextTimepointMs;
    if (this.connectedAtMs === null || this.owesAnswer) return lifeMs;
    const sessionMs =
      this.session === null ? this.connectedAtMs + HELLO_TIMEOUT_MS : this.session.nextTimepointMs;
    const never = Number.POSITIVE_INFINITY;
    const dueMs = Math.min(sessionMs ?? never, lifeMs ?? never);
    return dueMs === never ? null : dueMs;
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
        if (this.started) invalidTransition(this.state, 'start');
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
        this.handover = null;
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
        else this.life.onCommand(event.command === 'force-failover', this.session !== null);
        break;
      case 'claim-won':
      case 'claim-lost':
      case 'claim-unanswered':
        this.life.onClaim(event);
        if (event.type === 'claim-won') this.handover?.onClaimed();
        break;
      case 'superseded':
        if (this.life.mustEnd(event)) this.fence(event.reason);
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
    } else if (this.handover !== null) {
      // Whoever goes on by now, it isn't by this message.
      this.disconnect('the primary waits no longer');
    } else if (body.type === 'hello') {
      this.onHello(body, message.generation);
    } else {
      this.refuse('protocol', `${body.type} before HELLO`);
    }
  }

  private onHello(hello: Body & { type: 'hello' }, generation: number): void {
    const { life, context } = this;
    const refused = refuseHello(context, hello, generation, life);
    if (refused !== null) {
      this.refuseWith(refused, refused.message);
      return;
    }
    life.yieldToPrimary();
    this.session = new SecondarySession(context, this.standby, hello, generation);
  }

  private refuse(code: string, message: string): void {
    this.refuseWith(refusal(code, message), message);
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

  private fence(reason: string): void {
    this.context.emit({ type: 'quit-vm' });
    this.finish('fenced', reason);
  }

  private onVmLost(reason: string): void {
    if (this.session !== null) {
      this.context.send({ type: 'error', code: 'vm-lost', message: reason.slice(0, 512) });
    }
    this.handover?.refuse(reason);
    this.finish('vm-lost', reason);
  }

  private onStopCommand(): void {
    if (this.session !== null) this.context.send({ type: 'bye', reason: 'detach' });
    // Of a `cont` under way nobody knows yet what it does.
    if (!this.context.steps.has('promote')) this.handover?.refuse('stopped by command');
    this.finish('stopped', 'stopped by command');
  }

  private onAnswer(event: SecondaryEvent): void {
    const { steps } = this.context;
    switch (event.type) {
      case 'record-read':
        steps.end('read-record');
        this.session?.onRecordRead(event.record);
        break;
      case 'record-unread':
        steps.end('read-record');
        this.session?.onRecordUnread(event.reason);
        break;
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
        this.life.onSettled();
        this.handover?.onSettled();
        break;
      case 'settle-failed':
        steps.end('settle-disks');
        this.life.onSettleFailed(event.reason);
        break;
      case 'not-settled':
        steps.end('settle-disks');
        this.life.onPostponed(event.reason);
        break;
      case 'not-promoted':
        steps.end('promote');
        this.life.onPostponed(event.reason);
        break;
      case 'promoted':
        steps.end('promote');
        this.life.onPromoted();
        break;
      case 'promote-failed':
        steps.end('promote');
        this.life.onPromoteFailed(event.reason);
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
    if (this.session === null && this.life.now === 'standby') this.setState('BLOCKED', this.life.refusal);
  }

  // --- progress --------------------------------------------------------------------------------------------------------------------

  private advance(): void {
    this.session?.advance();
    if (this.session !== null) this.follow(this.session);
    else this.checkSilentConnection();
    this.life.advance(this.session !== null);
    if (this.handover?.answer(this.life) === true) this.connectedAtMs = this.context.nowMs;
    this.showState();
  }

  private follow(session: SecondarySession): void {
    if (session.end !== null) this.endSession(session, session.end);
    else if (session.handedOver) this.takeOver(session);
    else if (session.phase === 'failing')
      this.setState(
        this.standby.condemned === null ? this.state : 'BLOCKED',
        `waiting for the primary: ${session.failure}`,
      );
    else if (session.epoch > 0) this.followStandby();
    else if (session.touched) this.setState('SYNCING', 'the first copy is coming in');
    else this.setState('STARTING', 'comparing with the primary');
  }

  /** The connection stays, for the answer. */
  private takeOver(session: SecondarySession): void {
    this.context.emit({ type: 'close-session' });
    this.session = null;
    this.handover = new Handover(this.context, session.epoch);
    this.life.begin('the primary has handed it over', false, true);
  }

  private endSession(session: SecondarySession, end: SecondaryEnd): void {
    if (end.tell !== null) this.context.send(end.tell);
    this.disconnect(end.reason);
    session.forget();
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
    if (this.standby.epoch !== null && this.maySucceed(session, lost)) this.life.begin(end.reason, false);
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
      this.life.claimAtMs = this.context.nowMs + 2 * timings.peerTimeoutMs;
      this.setState('STANDBY', `${what} (${end.reason}); if it stays away the witness is asked`);
    } else if (this.standby.epoch !== null) {
      this.setState('STANDBY', `${what} (${end.reason}); failover waits for a person`);
    } else if (lost || this.standby.condemned !== null) {
      this.setState('BLOCKED', `${what} (${end.reason}); ${this.life.refusal}`);
    } else {
      this.setState('STARTING', `waiting for a primary; the last session ended: ${end.reason}`);
    }
  }

  /** A connection that says nothing is the primary's that waits for it. */
  private get owesAnswer(): boolean {
    return this.handover?.answered === false;
  }

  private checkSilentConnection(): void {
    if (this.connectedAtMs === null || this.owesAnswer) return;
    if (this.context.nowMs >= this.connectedAtMs + HELLO_TIMEOUT_MS) {
      this.disconnect('no HELLO came');
    }
  }

  // --- endings and state -----------------------------------------------------------------------------------------------------------

  private followStandby(): void {
    if (this.state !== 'STANDBY') this.setState('STANDBY', 'holds the last checkpoint');
  }

  private disconnect(reason: string): void {
    if (this.connectedAtMs !== null) this.context.emit({ type: 'disconnect', reason });
    this.connectedAtMs = null;
    this.handover = null;
  }

  private finish(outcome: Outcome, reason: string): void {
    this.disconnect(reason);
    if (this.session?.phase === 'open' || this.session?.phase === 'opening') {
      this.context.emit({ type: 'close-session' });
    }
    this.session = null;
    this.finished = true;
    this.setState(outcome === 'fenced' ? 'FENCED' : 'STOPPED', reason);
    this.showState();
    this.context.emit({ type: 'finished', outcome, reason });
  }

  private setState(word: StateWord, reason: string): void {
    this.context.shown.set(word, reason);
  }

  private showState(): void {
    const change = this.context.shown.takeChange();
    if (change !== null) this.context.emit(change);
  }
}
