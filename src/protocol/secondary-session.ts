/** One session of the secondary: from HELLO to whatever ends it. */

import type { VmRecord } from './arbiter.ts';
import { invalidTransition } from './errors.ts';
import type { Body, Lineage, Message } from './messages.ts';
import { disownedBy, type Hello } from './secondary-admission.ts';
import type { SecondaryContext } from './secondary-context.ts';
import type { Standby } from './standby.ts';

export interface SecondaryEnd {
  /**
   * `lost`: the primary is silent or gone, perhaps dead. `detached`, `shutdown`: it left in order. `alive`: the session ended in a way that leaves
   * the primary running alone, its output open: what is held here is older than what the world has seen.
   */
  cause: 'lost' | 'qemu-lost' | 'detached' | 'shutdown' | 'alive';
  reason: string;
  tell: Body | null;
}

export class SecondarySession {
  end: SecondaryEnd | null = null;
  /** `failing`: this side can't go on and has said so; the primary's answer or its silence decides what happened to it. */
  phase: 'waiting' | 'asking' | 'comparing' | 'opening' | 'open' | 'failing' = 'waiting';
  private readonly context: SecondaryContext;
  private readonly standby: Standby;
  private readonly hello: Hello;
  private opened = 0;
  private committed = 0;
  private firstCopy = false;
  private announced: { pages: number; vmstateBytes: number } | null = null;
  private staged: { pages: number; vmstateBytes: number } | null = null;
  private failingSinceMs = 0;
  /** Why this side can't go on. */
  failure = '';
  /** The primary's VM stands, and this one is to run: at the epoch that HANDOVER names, the last. */
  handedOver = false;

  /** The newest generation before this session; it is again if the HELLO turns out to be no primary's of ours. */
  private readonly before: number;

  /** The caller has checked the HELLO. */
  constructor(context: SecondaryContext, standby: Standby, hello: Hello, generation: number) {
    this.context = context;
    this.before = context.generation;
    context.generation = generation;
    this.standby = standby;
    this.hello = hello;
  }

  /** The last epoch committed in this session; 0 before the first. */
  get epoch(): number {
    return this.committed;
  }

  /** Bytes of this session may have touched the SVM. */
  get touched(): boolean {
    return this.phase === 'open' || this.phase === 'failing';
  }

  // --- messages --------------------------------------------------------------------------------------------------------------------

  onMessage(message: Message): void {
    const { body, epoch } = message;
    const { generation } = this.context;
    if (body.type === 'error') {
      this.finish('alive', `the primary reports ${body.code}: ${body.message}`);
    } else if (message.generation !== generation) {
      this.refuse(`${body.type} of generation ${message.generation}, expected ${generation}`);
    } else if (body.type === 'bye') {
      this.onBye(body.reason);
    } else if (this.phase === 'failing') {
      if (body.type === 'handover') this.refuseHandover(this.failure);
    } else {
      const expected = this.onSyncPoint(body, epoch);
      if (!expected) this.refuse(`unexpected ${body.type} ${epoch} (${this.describeState()})`);
    }
  }

  /** Whether the sync-point was the one to be expected. */
  private onSyncPoint(body: Body, epoch: number): boolean {
    if (body.type === 'new') return this.onNew(epoch);
    if (body.type === 'handover') return this.onHandover(epoch);
    return body.type === 'send' && this.onSend(epoch, body);
  }

  /**
   * One that lived after we had told it that this side can't go on may have gone on alone, its output open, before it died: what is held here
   * could be older than what the world has seen.
   */
  onPeerSilent(reason: string, heardMs: number): void {
    if (this.phase === 'failing' && heardMs > this.failingSinceMs) this.finish('alive', reason);
    else this.finish('lost', reason);
  }

  private onHandover(epoch: number): boolean {
    if (this.phase !== 'open' || epoch === 0 || epoch !== this.committed || epoch !== this.opened)
      return false;
    if (!this.standby.loaded || this.context.steps.size > 0) return false;
    this.handedOver = true;
    return true;
  }

  /** INVARIANT 4: it hears in so many words that this VM doesn't run, and goes on. */
  private refuseHandover(reason: string): void {
    const message = `this standby can't run the VM: ${reason}`.slice(0, 512);
    this.finish('alive', message, { type: 'error', code: 'handover-refused', message });
  }

  private onBye(reason: 'shutdown' | 'detach' | 'qemu-lost'): void {
    if (reason === 'shutdown') this.finish('shutdown', 'the guest shut down');
    else if (reason === 'detach') this.finish('detached', 'primary detached');
    else this.finish('qemu-lost', "the primary's QEMU was lost");
  }

  private onNew(epoch: number): boolean {
    if (this.phase !== 'open' || epoch !== this.opened + 1 || this.committed !== this.opened) return false;
    this.opened = epoch;
    this.announced = null;
    this.staged = null;
    if (this.firstCopy) this.openEpoch(epoch);
    return true;
  }

  /** The first epoch waits for the end of the copy that it builds on: a stream carries one epoch at a time. */
  private openEpoch(epoch: number): void {
    this.context.emit({ type: 'open-epoch', epoch });
    this.context.send({ type: 'suspended' }, epoch);
  }

  private onSend(epoch: number, { pages, vmstateBytes }: { pages: number; vmstateBytes: number }): boolean {
    if (this.phase !== 'open' || epoch !== this.opened || !this.firstCopy) return false;
    if (this.announced !== null || this.committed === epoch) return false;
    this.announced = { pages, vmstateBytes };
    return true;
  }

  // --- the shell's answers ---------------------------------------------------------------------------------------------------------

  onRecordRead(record: VmRecord | null): void {
    if (this.phase !== 'asking') return;
    const against = disownedBy(record, this.hello, this.context.generation);
    if (against === null) this.compare();
    else
      this.finish('alive', against, { type: 'error', code: 'other-witness', message: against.slice(0, 512) });
  }

  /** For now: the primary tries again. */
  onRecordUnread(reason: string): void {
    if (this.phase !== 'asking') return;
    const message = `the standby's witness doesn't answer, so that it can't see whose primary this is: ${reason}`;
    this.finish('alive', message, { type: 'error', code: 'witness-silent', message: message.slice(0, 512) });
  }

  /** Nothing of it was believed. */
  forget(): void {
    if (this.phase === 'waiting' || this.phase === 'asking') this.context.generation = this.before;
  }

  private compare(): void {
    const { context } = this;
    this.phase = 'comparing';
    context.steps.begin('compare');
    const { description, lineage } = this.hello;
    context.emit({ type: 'compare', description, generation: context.generation, lineage });
  }

  private askWitness(): void {
    this.phase = 'asking';
    this.context.steps.begin('read-record');
    this.context.emit({ type: 'read-record' });
  }

  onCompared(difference: string | null): void {
    if (this.phase !== 'comparing') return;
    if (difference !== null) {
      const message = difference.slice(0, 512);
      this.finish('alive', `incompatible: ${difference}`, { type: 'error', code: 'incompatible', message });
      return;
    }
    this.phase = 'opening';
    // INVARIANT 2: what was committed and hasn't reached the SVM is forgotten with the session that brought it.
    if (this.standby.epoch !== null && !this.standby.loaded) this.standby.discard();
    const { generation } = this.context;
    this.context.steps.begin('open-session');
    this.context.emit({ type: 'open-session', generation, connections: this.hello.connections });
  }

  onOpened(bulkToken: string, lineages: (Lineage | null)[]): void {
    if (this.phase !== 'opening') return;
    this.phase = 'open';
    // INVARIANT 2: READY lets the first copy into the SVM's RAM; from here on it holds no checkpoint.
    this.standby.discard();
    this.context.send({ type: 'ready', bulkToken, lineages, node: this.context.options.node });
  }

  onOpenFailed(reason: string): void {
    const message = `the standby can't take a session: ${reason}`.slice(0, 512);
    this.finish('alive', message, { type: 'error', code: 'open-failed', message });
  }

  /** An epoch is staged whole. One of a session that has been closed meanwhile is of no interest. */
  onStaged(epoch: number, pages: number, vmstateBytes: number): void {
    if (this.phase !== 'open') return;
    if (epoch === 0) {
      if (this.firstCopy) invalidTransition(this.describeState(), 'staged 0');
      this.firstCopy = true;
      if (this.opened > 0) this.openEpoch(this.opened);
    } else {
      const expected =
        this.firstCopy && epoch === this.opened && epoch > this.committed && this.staged === null;
      if (!expected) invalidTransition(this.describeState(), `staged ${epoch}`);
      this.staged = { pages, vmstateBytes };
    }
  }

  /** The flush or load of a committed epoch has ended well. */
  onLoaded(epoch: number): void {
    if (this.phase === 'open') this.context.send({ type: 'loaded' }, epoch);
  }

  /**
   * This side can't go on. The connection stays open: when the primary's host dies, its bulk connections may break before the control
   * connection does, and only the primary's answer tells that it lives.
   */
  fail(code: string, message: string): void {
    if (this.phase !== 'open') return;
    this.phase = 'failing';
    this.failure = message;
    this.failingSinceMs = this.context.nowMs;
    this.context.send({ type: 'error', code, message: message.slice(0, 512) });
    this.context.emit({ type: 'close-session' });
  }

  // --- progress --------------------------------------------------------------------------------------------------------------------

  advance(): void {
    const { context } = this;
    if (this.end === null && this.phase === 'waiting' && context.steps.size === 0) {
      // A flush, load or comparison of an earlier session has come to its end by now.
      if (context.options.failover === 'claimed') this.askWitness();
      else this.compare();
    }
    if (this.end === null) this.commitIfComplete();
    if (this.end === null && this.phase === 'failing' && context.nowMs >= this.failedForGoodMs) {
      this.finish('alive', 'the primary goes on after an error');
    }
  }

  get nextTimepointMs(): number | null {
    return this.phase === 'failing' ? this.failedForGoodMs : null;
  }

  /** When a primary that lives and doesn't answer our ERROR is left: late enough for its silence, should it be dead, to be told before. */
  private get failedForGoodMs(): number {
    return this.failingSinceMs + 2 * this.context.options.timings.peerTimeoutMs;
  }

  /**
   * The commit point: everything of the epoch is here, whole, and the one before is loaded (at most one is committed and not loaded).
   */
  private commitIfComplete(): void {
    const { announced, staged, opened } = this;
    if (this.phase !== 'open' || announced === null || staged === null) return;
    if (!this.standby.settled || this.committed === opened) return;
    if (staged.pages > announced.pages || staged.vmstateBytes !== announced.vmstateBytes) {
      const came = `${staged.pages} pages and ${staged.vmstateBytes} bytes of device state came`;
      this.refuse(`epoch ${opened}: ${announced.pages} and ${announced.vmstateBytes} announced, ${came}`);
      return;
    }
    this.committed = opened;
    this.context.send({ type: 'received' }, opened);
    this.standby.commit(opened, { generation: this.context.generation, node: this.hello.node });
  }

  private refuse(message: string): void {
    this.finish('alive', message, { type: 'error', code: 'protocol', message: message.slice(0, 512) });
  }

  private finish(cause: SecondaryEnd['cause'], reason: string, tell: Body | null = null): void {
    this.end ??= { cause, reason, tell };
  }

  private describeState(): string {
    return `${this.phase}: new ${this.opened}, received ${this.committed}`;
  }
}
