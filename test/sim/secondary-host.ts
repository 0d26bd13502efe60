/** The secondary's shell as a model: staging that is filled frame by frame, RAM that is flushed in two halves, a load that takes time. */
import type { SecondaryEffect, SecondaryEvent } from '../../src/protocol/machine.ts';
import { Agent, type EventBody, type ObservedMachine } from './agent.ts';
import { Arbitration } from './arbitration.ts';
import { BLOCKS, type DiskWrite } from './disks.ts';
import type { Guest } from './guest.ts';
import type { Connection } from './network.ts';
import { violated, type World } from './world.ts';

export type SecondaryObserved = ObservedMachine<SecondaryEvent, SecondaryEffect>;

export type BulkFrame =
  | { kind: 'pages'; epoch: number; pages: [number, number][] }
  | { kind: 'vmstate'; epoch: number; device: number }
  | { kind: 'disk'; epoch: number; writes: DiskWrite[] }
  | { kind: 'end'; epoch: number };

interface Staging {
  writes: DiskWrite[];
  pages: Map<number, number>;
  device: number;
  ends: number;
}

const TORN = Number.NaN;
/** From READY until the primary's heartbeats have come. */
const FIRST_HEARTBEAT_MS = 5000;

export class SecondaryAgent extends Agent<SecondaryEvent, SecondaryEffect> {
  private readonly guest: Guest;
  private session: { token: string; generation: number; connections: number; opened: number } | null = null;
  private channels: Connection<BulkFrame>[] = [];
  private staged = new Map<number, Staging>();
  private mailbox = 0;
  /** The checkpoint that RAM and device state are at: null while neither is. */
  private at: { generation: number; epoch: number } | null = null;
  private committed: { generation: number; epoch: number } | null = null;
  private busy: 'flush' | 'load' | null = null;
  private tokens = 0;
  private readonly arbitration: Arbitration;
  /** Of the disk, before the session's primary came. */
  private lineage: string | null = null;
  /** With the session's first checkpoint. */
  private becomes: string | null = null;

  constructor(world: World, guest: Guest, machine: SecondaryObserved) {
    super(world, 1, machine);
    this.arbitration = new Arbitration(world, 1, this);
    this.guest = guest;
  }

  /** The state that a failover would resume; below every state when there is none. */
  get heldDevice(): number {
    const { committed, world } = this;
    return committed === null
      ? Number.NEGATIVE_INFINITY
      : world.snapshotOf(committed.generation, committed.epoch).device;
  }

  accept(link: Connection<Uint8Array>): boolean {
    if (!this.alive || this.finished) return false;
    this.whenAwake(() => {
      if (this.link !== null) {
        link.close(1);
        return;
      }
      this.takeLink(link);
      this.dispatch({ type: 'peer-connected' });
    });
    return true;
  }

  acceptHeartbeats(connection: Connection<'beat'>, token: string): boolean {
    if (!this.alive || this.session?.token !== token) return false;
    this.whenAwake(() => {
      if (this.link !== null && this.session?.token === token) this.beginHeartbeats(connection);
      else connection.close(1);
    });
    return true;
  }

  acceptBulk(channels: Connection<BulkFrame>[], token: string): boolean {
    if (!this.alive || this.session?.token !== token || this.session.connections !== channels.length)
      return false;
    this.channels = channels;
    for (const channel of channels) {
      channel.attach(
        1,
        (frame) => this.onFrame(frame),
        () => this.streamFailed('the peer closed a bulk connection'),
      );
    }
    return true;
  }

  protected perform(effect: SecondaryEffect): void {
    switch (effect.type) {
      case 'send':
        this.observe(effect.message.body.type, effect.message.generation, effect.message.epoch);
        this.send(effect.message);
        if (effect.message.body.type === 'ready') this.expectHeartbeats(effect.message.body.bulkToken);
        break;
      case 'disconnect':
        this.closeLink();
        break;
      case 'claim':
        this.arbitration.ask(effect.claim);
        return;
      case 'withdraw-claim':
        this.arbitration.withdraw();
        return;
      case 'read-record':
        this.readRecord();
        break;
      case 'compare':
        this.world.record(1, effect.generation);
        this.later(() => {
          this.lineage = this.world.standbyDisk.lineage;
          this.becomes = effect.lineage;
          return { type: 'compared', difference: null };
        });
        break;
      case 'open-session':
        this.later(() => this.openSession(effect.generation, effect.connections));
        break;
      case 'open-epoch':
        if (this.session !== null) this.session.opened = effect.epoch;
        return;
      case 'flush':
        this.flush(effect.epoch);
        break;
      case 'load':
        this.load(effect.epoch);
        break;
      case 'close-session':
        this.closeSession();
        break;
      case 'settle-disks':
        this.settleDisks();
        break;
      case 'promote':
        this.world.win(1, effect.generation);
        this.promote();
        break;
      case 'skip-fence':
        return;
      case 'quit-vm':
        this.world.killGuest('S');
        return;
      case 'finished':
        this.finished = true;
        this.arbitration.close();
        this.closeLink();
        this.closeSession();
        return;
      case 'state':
        return;
    }
  }

  private readRecord(): void {
    this.world.etcd.request(1, { type: 'read', request: 0 }, (entry) =>
      this.dispatch(
        entry === null
          ? { type: 'record-unread', reason: 'no answer' }
          : { type: 'record-read', record: entry.record },
      ),
    );
  }

  guestDied(): void {
    this.world.clock.after(this.world.random.between(0, 5), () =>
      this.dispatch({ type: 'vm-lost', reason: 'the QEMU process ended' }),
    );
  }

  override kill(withHost: boolean): void {
    super.kill(withHost);
    this.arbitration.close();
    for (const channel of this.channels) channel.kill(1, withHost);
  }

  /** The oracle of INVARIANT 1: what the secondary has promised. */
  private observe(type: string, generation: number, epoch: number): void {
    // Whoever has got READY may go on alone with an open gate: what is held here is not the newest state any more.
    if (type === 'ready') this.committed = null;
    if (type !== 'received') return;
    this.world.committed(generation, epoch);
    this.committed = { generation, epoch };
  }

  // --- staging ---------------------------------------------------------------------------------------------------------------------

  private openSession(generation: number, connections: number): EventBody<SecondaryEvent> {
    if (this.busy !== null) violated(6, `a session is opened during a ${this.busy}`);
    this.staged.clear();
    const token = String(++this.tokens).padStart(32, '0');
    this.session = { token, generation, connections, opened: 0 };
    return { type: 'session-opened', bulkToken: token, lineages: [this.lineage] };
  }

  /** As PeerHeartbeat does: the primary may never have seen READY. */
  private expectHeartbeats(token: string): void {
    const sinceMs = this.world.clock.nowMs;
    this.world.clock.after(FIRST_HEARTBEAT_MS, () =>
      this.whenAwake(() => {
        if (this.session?.token !== token || this.link === null || this.hasHeartbeats) return;
        this.dispatch({ type: 'peer-silent', reason: 'no heartbeat connection came', heardMs: sinceMs });
      }),
    );
  }

  private onFrame(frame: BulkFrame): void {
    const { session } = this;
    if (session === null || this.channels.length === 0 || !this.alive) return;
    if (frame.epoch > session.opened) {
      this.streamFailed(`epoch ${frame.epoch} is not open`);
      return;
    }
    const staging = this.staged.get(frame.epoch) ?? {
      writes: [],
      pages: new Map(),
      device: 0,
      ends: 0,
    };
    this.staged.set(frame.epoch, staging);
    if (frame.kind === 'end') this.onEnd(frame.epoch, staging);
    else if (frame.kind === 'vmstate') staging.device = frame.device;
    else if (frame.kind === 'disk') this.onDisk(frame.epoch, staging, frame.writes);
    else for (const [page, value] of frame.pages) this.onPage(frame.epoch, staging, page, value);
  }

  private onPage(epoch: number, staging: Staging, page: number, value: number): void {
    staging.pages.set(page, value);
    if (epoch > 0) return;
    if (this.guest.running) violated(2, 'the first copy writes into a running VM');
    this.at = null;
    this.committed = null;
    this.guest.ram[page] = value;
  }

  private onDisk(epoch: number, staging: Staging, writes: DiskWrite[]): void {
    if (epoch > 0) staging.writes.push(...writes);
    else this.writeDisk(writes);
  }

  private writeDisk(writes: readonly DiskWrite[]): void {
    if (this.guest.running) violated(2, "a running VM's disk is written");
    for (const [block, value] of writes) this.world.standbyDisk.blocks[block] = value;
  }

  private onEnd(epoch: number, staging: Staging): void {
    staging.ends++;
    if (staging.ends < this.channels.length) return;
    this.dispatch({ type: 'staged', epoch, pages: staging.pages.size, vmstateBytes: epoch === 0 ? 0 : 1000 });
  }

  /** Reported once; what is staged whole stays until the session is closed, as in native/core/standby_engine.cc. */
  private streamFailed(reason: string): void {
    if (this.session === null || this.channels.length === 0) return;
    this.closeChannels();
    this.dispatch({ type: 'stream-failed', reason });
  }

  private closeSession(): void {
    this.session = null;
    this.closeChannels();
    for (const epoch of this.staged.keys()) if (epoch !== this.committed?.epoch) this.staged.delete(epoch);
  }

  private closeChannels(): void {
    for (const channel of this.channels) channel.close(1);
    this.channels = [];
  }

  // --- the SVM ---------------------------------------------------------------------------------------------------------------------

  private flush(epoch: number): void {
    const staging = this.staged.get(epoch);
    if (staging === undefined) violated(2, `flush of epoch ${epoch}, which is not staged`);
    this.begin('flush');
    const pages = [...staging.pages];
    const half = pages.length >> 1;
    for (const [page, value] of pages.slice(0, half)) this.guest.ram[page] = value;
    const middle = staging.writes.length >> 1;
    this.writeDisk(staging.writes.slice(0, middle));
    this.later(() => {
      this.busy = null;
      if (this.fails()) {
        // Either QEMU is gone, or a disk can't be written for the moment.
        if (this.world.random.chance(0.5)) this.world.kill('S-qemu');
        return { type: 'flush-failed', epoch, reason: 'the world is bad' };
      }
      for (const [page, value] of pages.slice(half)) this.guest.ram[page] = value;
      this.writeDisk(staging.writes.slice(middle));
      this.mailbox = staging.device;
      return this.scrubFinds()
        ? { type: 'ram-differs', epoch, reason: 'page 0' }
        : { type: 'flushed', epoch };
    });
  }

  /** INVARIANT 8: sometimes RAM isn't what was written. Whoever goes on from here meets the oracles of `load` and `promote`. */
  private scrubFinds(): boolean {
    const { random, options, calm } = this.world;
    if (calm || !random.chance(options.stepFailures / 4)) return false;
    this.guest.ram[0] = TORN;
    this.committed = null;
    return true;
  }

  private load(epoch: number): void {
    this.begin('load');
    this.guest.device = TORN;
    const { committed } = this;
    this.later(() => {
      this.busy = null;
      if (this.fails()) return { type: 'load-failed', epoch, reason: 'the world is bad' };
      this.guest.device = this.mailbox;
      this.at = committed;
      this.world.standbyDisk.lineage = this.becomes;
      if (committed !== null)
        this.world.compare(committed.generation, committed.epoch, this.guest.snapshot());
      return { type: 'loaded', epoch };
    });
  }

  private begin(what: 'flush' | 'load'): void {
    if (this.busy !== null) violated(6, `${what} during a ${this.busy}`);
    if (this.guest.running) violated(6, `${what} into a running VM`);
    this.busy = what;
    this.at = null;
  }

  private settleDisks(): void {
    if (this.busy !== null) violated(6, `disks synced during a ${this.busy}`);
    const { random, standbyDisk } = this.world;
    const answer = this.fails() ? (random.chance(0.5) ? 'settle-failed' : 'not-settled') : null;
    this.later(() => {
      if (answer === null) return { type: 'disks-settled' };
      if (answer === 'settle-failed') standbyDisk.writeLost(random.between(0, BLOCKS) | 0);
      return { type: answer, reason: 'the world is bad' };
    });
  }

  private promote(): void {
    this.world.requireAlone(1, 'lets its VM run');
    if (this.busy !== null) violated(6, `promoted during a ${this.busy}`);
    const { at } = this;
    if (at === null) violated(2, 'promoted without a whole checkpoint');
    this.world.compare(at.generation, at.epoch, this.guest.snapshot());
    this.later(() => {
      if (this.fails()) return this.notPromoted();
      this.world.promoted(this.guest.device);
      this.world.standbyDisk.lineage = null;
      this.guest.running = true;
      return { type: 'promoted' };
    });
  }

  /** A fence or a record fails, which may be tried again; or `cont` does, after which the VM is as good as dead. */
  private notPromoted(): EventBody<SecondaryEvent> {
    const again = this.world.random.chance(0.7);
    if (!again) this.world.deaths++;
    return { type: again ? 'not-promoted' : 'promote-failed', reason: 'the world is bad' };
  }

  private later(work: () => EventBody<SecondaryEvent>): void {
    this.world.clock.after(this.world.random.between(0.2, 8), () => {
      if (this.alive && !this.finished && this.guest.alive) this.dispatch(work());
    });
  }

  private fails(): boolean {
    return this.world.random.chance(this.world.options.stepFailures * (this.world.calm ? 0 : 1));
  }
}
