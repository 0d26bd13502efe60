/**
 * One session of the primary: from READY's handshake through the first copy to checkpoint after checkpoint. It begins with a connected peer and
 * ends by itself (`end` is set) or by the machine; what the VM still needs then is the machine's business.
 */
import { invalidTransition } from './errors.ts';
import type { PrimaryEvent, PrimaryStep } from './machine.ts';
import { type Body, GENERATION_MAX, type Lineage, type Message } from './messages.ts';
import type { Capture } from './primary-capture.ts';
import type { PrimaryContext } from './primary-context.ts';
import { Drill, HANDOVER_TIMEOUT_MS } from './primary-drill.ts';
import type { VmControl } from './primary-vm.ts';
import { nextCheckpointMs, type Pace } from './schedule.ts';

/** A peer that lives but owes an answer, or a link that keeps the VM standing, ends the session after this. */
export const ANSWER_TIMEOUT_MS = 10_000;
/** So many failed checkpoints in a row end the session. */
export const FAILED_CHECKPOINTS_MAX = 3;

export interface SessionEnd {
  reason: string;
  /** What the peer is told, if it can still be told anything. */
  tell: Body | null;
  cause: 'peer' | 'local' | 'incompatible' | 'fenced' | 'split-brain' | 'stale' | 'handed-over';
}

type Phase = 'hello' | 'bulk' | 'gate' | 'disks' | 'protect' | 'sync' | 'checkpoints';

export class PrimarySession {
  end: SessionEnd | null = null;
  phase: Phase = 'hello';
  committedAtMs: number | null = null;
  readonly beganMs: number;
  /** What the secondary's host calls itself; known from READY on. */
  node = '';
  /** The newer generation that the peer has seen, when that ended the session. */
  staleSince: number | null = null;
  /** The planned failover under way, and why the last one came to nothing. */
  drill: Drill | null = null;
  drillFailure = '';
  /** Why the last checkpoint had to be given up, until one succeeds. */
  trouble: string | null = null;
  private readonly context: PrimaryContext;
  private readonly vm: VmControl;
  private readonly capture: Capture;
  private readonly lineage: Lineage;
  /** Of the standby's disks, from READY. */
  private lineages: (Lineage | null)[] = [];
  // How far each sync-point has come, as the epoch that last passed it.
  private announced = 0;
  private suspended = 0;
  private sent = 0;
  private committed = 0;
  private loaded = 0;
  /** The epoch that holds the guest's shutdown. */
  private last: number | null = null;
  private failures = 0;
  private outputHeld = false;
  private urgency: Pace['urgency'] = 'soon';
  private notBeforeMs = Number.NEGATIVE_INFINITY;
  private coversPause = false;
  /** The last sign of progress: the peer's answers and our own sending. */
  private progressMs: number;

  constructor(context: PrimaryContext, vm: VmControl, capture: Capture, lineage: Lineage) {
    this.context = context;
    this.vm = vm;
    this.capture = capture;
    this.lineage = lineage;
    this.beganMs = context.nowMs;
    this.progressMs = context.nowMs;
    const { description, mode, connections, node, arbitration } = context.options;
    context.send({ type: 'hello', description, mode, connections, lineage, node, arbitration });
  }

  /** The peer has said READY: from here on it can't take over at an older checkpoint. */
  get ready(): boolean {
    return this.phase !== 'hello';
  }

  /** The last epoch that RECEIVED has come for; 0 before the first. */
  get epoch(): number {
    return this.committed;
  }

  // --- messages --------------------------------------------------------------------------------------------------------------------

  onMessage(message: Message): void {
    const { body } = message;
    const { vmId } = this.context.options;
    const { generation } = this.context;
    if (message.vmId !== vmId) {
      this.refuse('wrong-vm', `${body.type} for VM ${message.vmId}`);
    } else if (body.type === 'error') {
      this.onError(body);
    } else if (body.type === 'took-over') {
      this.onTookOver(message);
    } else if (message.generation !== generation) {
      this.refuse('protocol', `${body.type} of generation ${message.generation}, expected ${generation}`);
    } else if (body.type === 'bye') {
      this.finish('peer', `the secondary left: ${body.reason}`, null);
    } else {
      this.progressMs = this.context.nowMs;
      const expected = this.onSyncPoint(body, message.epoch);
      if (!expected) this.refuse('protocol', `unexpected ${this.describe(body, message.epoch)}`);
    }
  }

  /** It is told: should it live after all, it must not take our end of the connection for our death. */
  onPeerSilent(reason: string): void {
    this.refuse('timeout', reason);
  }

  onMalformed(reason: string): void {
    this.refuse('protocol', reason);
  }

  /** Whether the sync-point was the one to be expected. */
  private onSyncPoint(body: Body, epoch: number): boolean {
    switch (body.type) {
      case 'ready':
        return this.onReady(body);
      case 'suspended':
        if (epoch !== this.suspended + 1 || epoch > this.announced) return false;
        this.suspended = epoch;
        return true;
      case 'received':
        return this.onReceived(epoch);
      case 'loaded':
        if (epoch !== this.loaded + 1 || epoch > this.committed) return false;
        this.loaded = epoch;
        if (this.context.options.copiesDisks) this.context.emit({ type: 'confirm-disks', epoch });
        return true;
      default:
        return false;
    }
  }

  private onReady({ bulkToken, lineages, node }: Body & { type: 'ready' }): boolean {
    if (this.phase !== 'hello') return false;
    const { arbitration, node: own } = this.context.options;
    if (arbitration === 'witness' && node === own) {
      // The secondary has looked, too; but ours is the VM that a mistake would cost.
      const message = `both hosts call themselves ${own}: the witness can't tell them apart, give each its own --node`;
      this.finish('incompatible', message, { type: 'error', code: 'incompatible', message });
      return true;
    }
    if (this.context.handedOver) {
      // INVARIANT 4: whoever takes a session can't take over at an older checkpoint, and hasn't.
      this.context.handedOver = false;
      const message = 'the standby has not taken the VM over: it goes on here';
      this.finish('local', message, { type: 'error', code: 'session-ended', message });
      return true;
    }
    this.lineages = lineages;
    this.node = node;
    // The bulk connections come first: a network that doesn't carry them costs the VM nothing.
    this.phase = 'bulk';
    this.context.steps.begin('bulk');
    this.context.emit({ type: 'connect-bulk', bulkToken, connections: this.context.options.connections });
    return true;
  }

  private onReceived(epoch: number): boolean {
    if (epoch !== this.committed + 1 || epoch > this.sent || this.loaded !== this.committed) return false;
    this.committed = epoch;
    this.committedAtMs = this.context.nowMs;
    this.failures = 0;
    this.trouble = null;
    // INVARIANT 1: the only place where held output is released within a session.
    this.context.emit({ type: 'release-output', epoch });
    if (epoch === this.last) {
      this.finish('local', 'the guest shut down', { type: 'bye', reason: 'shutdown' });
    } else if (epoch !== this.drill?.epoch) {
      this.announce();
    }
    return true;
  }

  private announce(): void {
    this.announced++;
    this.progressMs = this.context.nowMs;
    this.context.send({ type: 'new' }, this.announced);
  }

  private onError(body: Body & { type: 'error' }): void {
    const { code, message, generation, role } = body;
    const reason = `the secondary reports ${code}: ${message}`;
    const stale = code === 'stale-generation' && generation !== undefined && role !== undefined;
    // INVARIANT 4: the newer generation runs; and behind a gate that has been closed all the time, or where the VM stands, a peer that runs has taken over.
    const stood = this.context.foreignGate || this.context.handedOver;
    const superseded = stale && (generation > this.context.generation || stood);
    if (this.drill?.offered === true) {
      // Any other was sent before HANDOVER came: that is answered, too, or the connection ends.
      if (code !== 'handover-refused') return;
      this.context.handedOver = false;
    }
    if (superseded && role === 'running') {
      this.finish('fenced', reason, null);
    } else if (this.ready) {
      // The secondary must learn that this primary lives and goes on alone: without an answer it would take the closed connection for our
      // death.
      this.finish('peer', reason, { type: 'error', code: 'session-ended', message: 'ended by your error' });
    } else if (stale && role === 'running') {
      this.finish('split-brain', reason, null);
    } else if (stale && generation > this.context.generation && generation < GENERATION_MAX) {
      this.finish('stale', reason, null);
      this.staleSince = generation;
    } else {
      // A person must change something first.
      const lasting = code === 'incompatible' || code === 'other-witness';
      this.finish(lasting ? 'incompatible' : 'peer', reason, null);
    }
  }

  // --- the shell's answers ---------------------------------------------------------------------------------------------------------

  /** An answer of this session's handshake, or of its transmit. */
  onAnswer(type: PrimaryEvent['type']): void {
    const { context } = this;
    this.progressMs = context.nowMs;
    if (type === 'transmitted') return;
    if (this.phase === 'bulk' && type === 'bulk-connected') {
      this.phase = 'gate';
      context.steps.begin('gate');
      context.emit({ type: 'install-gate' });
    } else if (this.phase === 'gate' && type === 'gate-installed') {
      if (context.options.copiesDisks) this.syncDisks();
      else this.protect();
    } else if (this.phase === 'disks' && type === 'disks-synced') {
      this.protect();
    } else if (this.phase === 'protect' && type === 'protected') {
      this.phase = 'sync';
      context.steps.begin('sync');
      context.emit({ type: 'sync' });
      this.announce();
    } else if (this.phase === 'sync' && type === 'synced') {
      this.phase = 'checkpoints';
    } else {
      invalidTransition(this.phase, type);
    }
  }

  private syncDisks(): void {
    this.phase = 'disks';
    this.context.steps.begin('disks');
    this.context.emit({ type: 'sync-disks', lineages: this.lineages, lineage: this.lineage });
  }

  private protect(): void {
    this.phase = 'protect';
    this.context.steps.begin('protect');
    this.context.emit({ type: 'protect' });
  }

  onStopped(wasRunning: boolean): void {
    this.coversPause = !wasRunning;
  }

  onCaptured(): void {
    // The gate is sealed: what it held belongs to this checkpoint, and nothing more comes before the VM runs again.
    this.outputHeld = false;
  }

  /** Hands the VM over, as soon as it may be. */
  beginDrill(): void {
    this.drill = new Drill(this.context, this.vm);
    this.ask('soon');
  }

  /** Before HANDOVER has been sent: the session goes on as any other. */
  giveDrillUp(reason: string): void {
    if (this.drill === null) return;
    this.drill = null;
    this.drillFailure = reason;
    if (this.end === null && this.announced === this.committed) this.announce();
  }

  /** A VM that others had paused is theirs to resume. */
  onStood(wasRunning: boolean): void {
    if (wasRunning) this.drill?.offer(this.committed);
    else this.giveDrillUp('somebody has paused the VM');
  }

  private onTookOver({ generation, epoch }: Message): void {
    const expected = this.drill?.offered === true && epoch === this.drill.epoch;
    if (expected && generation > this.context.generation)
      this.finish('handed-over', `${this.node} runs the VM in generation ${generation}`, null);
    else this.refuse('protocol', `unexpected took-over ${epoch} of generation ${generation}`);
  }

  /** A step that isn't part of the pause has failed. */
  onStepFailed(step: PrimaryStep | 'claim', reason: string): void {
    this.fail(`${step} failed: ${reason}`);
  }

  onOutputHeld(): void {
    this.outputHeld = true;
  }

  ask(urgency: 'soon' | 'now'): void {
    if (this.urgency !== 'now') this.urgency = urgency;
  }

  onPausedByOthers(): void {
    this.coversPause = false;
  }

  /** Whoever resumes a guest that has shut down (after a reset) has taken the shutdown back. */
  onResumedByOthers(): void {
    this.last = null;
  }

  // --- progress --------------------------------------------------------------------------------------------------------------------

  /** Does whatever is possible and due by now. */
  advance(): void {
    if (this.end === null) this.checkPeer();
    if (this.end === null && this.drill !== null) this.advanceDrill(this.drill);
    if (this.end === null) this.advanceCheckpoint();
  }

  private advanceDrill(drill: Drill): void {
    const { obstacle } = drill;
    if (obstacle !== null) this.giveDrillUp(obstacle);
    else if (this.standAtMs() <= this.context.nowMs) drill.standStill();
  }

  /** When the VM may be brought to a stand, to be handed over; infinity while something else must happen first. */
  private standAtMs(): number {
    const { drill, context, capture, vm } = this;
    const done = drill !== null && drill.epoch !== null && this.loaded === drill.epoch;
    if (!done || capture.active || vm.stoppedByUs || context.steps.has('resume', 'transmit'))
      return Number.POSITIVE_INFINITY;
    return drill.mayStandMs(this.committedAtMs ?? context.nowMs);
  }

  private advanceCheckpoint(): void {
    const failed = this.capture.advance();
    if (failed !== null) this.onCheckpointFailed(failed);
    if (this.end !== null) return;
    if (this.mayResume()) this.vm.resume();
    this.sendIfReady();
    if (this.startAtMs() <= this.context.nowMs) this.start();
  }

  get nextTimepointMs(): number {
    const dueMs = [this.startAtMs()];
    if (this.peerOwes()) dueMs.push(this.progressMs + ANSWER_TIMEOUT_MS);
    if (this.waitsForLink()) dueMs.push(this.vm.startedMs + ANSWER_TIMEOUT_MS);
    dueMs.push(this.standAtMs());
    if (this.drill?.overdue === false) dueMs.push(this.drill.dueMs ?? Number.POSITIVE_INFINITY);
    return Math.min(...dueMs);
  }

  private start(): void {
    const epoch = this.sent + 1;
    if (this.vm.shutDown) this.last = epoch;
    if (this.drill !== null) this.drill.epoch = epoch;
    this.urgency = 'none';
    this.capture.begin(epoch);
  }

  private sendIfReady(): void {
    if (this.suspended <= this.sent) return;
    const checkpoint = this.capture.take();
    if (checkpoint === null) return;
    const { epoch, pages, vmstateBytes } = checkpoint;
    this.sent = epoch;
    this.progressMs = this.context.nowMs;
    this.context.send({ type: 'send', pages, vmstateBytes }, epoch);
    this.context.steps.begin('transmit', epoch);
    this.context.emit({ type: 'transmit', epoch });
  }

  /**
   * Pipelined runs on as soon as its pages are captured and the standby can take them, without waiting for the answer to the save: QEMU carries out
   * its commands in order. Strict runs on only when the standby has loaded what was sent.
   */
  private mayResume(): boolean {
    if (this.context.options.mode === 'strict') return !this.capture.active && this.loaded === this.sent;
    return this.capture.captured ? this.suspended > this.sent : !this.capture.active;
  }

  /** When the next `stop-and-save` may be asked for; infinity while something else must happen first. */
  private startAtMs(): number {
    const { steps, options } = this.context;
    // A transmit in progress reads the staging and the device state that the next checkpoint would overwrite.
    const busy = this.capture.active || this.vm.stoppedByUs || steps.has('resume', 'transmit');
    const isLast = this.last !== null || (this.drill !== null && this.drill.epoch !== null);
    if (this.phase !== 'checkpoints' || busy || isLast) return Number.POSITIVE_INFINITY;
    const urgency = this.vm.shutDown ? 'now' : this.urgency;
    // A gate that is nearly full stops the VM even before the standby has confirmed the last checkpoint.
    if (this.suspended <= this.sent && urgency !== 'now') return Number.POSITIVE_INFINITY;
    if (urgency === 'none' && this.vm.pausedByOthers && this.coversPause) return Number.POSITIVE_INFINITY;
    return nextCheckpointMs(options.timings, {
      lastStartedMs: this.vm.startedMs,
      lastResumedMs: this.vm.resumedMs,
      lastPauseMs: this.vm.pauseMs,
      outputHeld: this.outputHeld,
      urgency,
      notBeforeMs: this.notBeforeMs,
    });
  }

  private onCheckpointFailed(reason: string): void {
    this.failures++;
    this.trouble = `checkpoint ${this.sent + 1}: ${reason}`;
    this.giveDrillUp(this.trouble);
    this.last = null;
    this.coversPause = false;
    // Frames may lie sealed in the gate for a checkpoint that doesn't come.
    this.outputHeld = true;
    this.notBeforeMs = this.context.nowMs + this.context.options.timings.intervalMs;
    if (this.failures < FAILED_CHECKPOINTS_MAX) return;
    this.fail(`${this.failures} checkpoints failed in a row; the last: ${reason}`);
  }

  // --- the peer's answers ----------------------------------------------------------------------------------------------------------

  private checkPeer(): void {
    const { nowMs } = this.context;
    if (this.peerOwes() && nowMs >= this.progressMs + ANSWER_TIMEOUT_MS) {
      this.refuse(
        'timeout',
        `the secondary owes an answer for ${ANSWER_TIMEOUT_MS} ms (${this.describeState()})`,
      );
    } else if (this.drill?.overdue === true && this.context.options.arbitration === 'witness') {
      // INVARIANT 7: the witness says who goes on; without one only the standby can.
      this.refuse('timeout', `the standby has not said within ${HANDOVER_TIMEOUT_MS} ms that it runs the VM`);
    } else if (this.waitsForLink() && nowMs >= this.vm.startedMs + ANSWER_TIMEOUT_MS) {
      // INVARIANT 7: neither a slow link nor a slow peer keeps the VM standing.
      this.refuse('timeout', `the VM has stood for ${ANSWER_TIMEOUT_MS} ms (${this.describeState()})`);
    }
  }

  private peerOwes(): boolean {
    if (this.phase === 'hello') return true;
    const behind =
      this.suspended < this.announced || this.committed < this.sent || this.loaded < this.committed;
    return behind && !this.context.steps.has('transmit', 'sync');
  }

  /** Our VM stands and what we wait for isn't QEMU. */
  private waitsForLink(): boolean {
    const { steps, handedOver } = this.context;
    return this.vm.stoppedByUs && !handedOver && !steps.has('stop', 'stand', 'save', 'capture', 'resume');
  }

  // --- endings ---------------------------------------------------------------------------------------------------------------------

  /** The peer broke the rules or keeps us waiting: ERROR, and the session is over; never the process. */
  private refuse(code: string, message: string): void {
    this.finish('peer', message, { type: 'error', code, message });
  }

  /** Something failed on this side. */
  private fail(message: string): void {
    this.finish('local', message, { type: 'error', code: 'primary-failed', message: message.slice(0, 512) });
  }

  private finish(cause: SessionEnd['cause'], reason: string, tell: Body | null): void {
    this.end ??= { cause, reason, tell };
  }

  private describe(body: Body, epoch: number): string {
    return `${body.type}${epoch > 0 ? ` ${epoch}` : ''} (${this.describeState()})`;
  }

  private describeState(): string {
    const { phase, announced, suspended, sent, committed, loaded } = this;
    return `${phase}: new ${announced}, suspended ${suspended}, send ${sent}, received ${committed}, loaded ${loaded}`;
  }
}
