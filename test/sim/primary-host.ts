/** The primary's shell as a model: QMP commands one after the other, an engine that captures and sends, and faults wherever one can occur. */
import type { PrimaryEffect, PrimaryEvent, PrimaryStep } from '../../src/protocol/machine.ts';
import { Agent, type EventBody, type ObservedMachine } from './agent.ts';
import { Arbitration } from './arbitration.ts';
import { DiskLog, type DiskWrite } from './disks.ts';
import { Gate, type Guest, PAGES } from './guest.ts';
import { Connection } from './network.ts';
import type { BulkFrame } from './secondary-host.ts';
import { violated, type World } from './world.ts';

export type PrimaryObserved = ObservedMachine<PrimaryEvent, PrimaryEffect>;

export class PrimaryAgent extends Agent<PrimaryEvent, PrimaryEffect> {
  private readonly guest: Guest;
  /** The VM stands because of us, as our QMP connection knows. */
  stopped = false;
  private queueFreeMs = 0;
  private channels: Connection<BulkFrame>[] = [];
  private captured = new Map<number, number>();
  private shadow = new Map<number, number>();
  private vmstate = 0;
  private readonly disk: DiskLog;
  /** The state of the standby's disk that was confirmed last. */
  private known: string | null = null;
  private lineage = '';
  /** The engine's job in progress, which a disconnect fails. */
  private job: { step: PrimaryStep; over: boolean } | null = null;
  private connecting = false;
  private readonly arbitration: Arbitration;

  constructor(world: World, guest: Guest, machine: PrimaryObserved) {
    super(world, 0, machine);
    this.arbitration = new Arbitration(world, 0, this);
    this.guest = guest;
    this.disk = new DiskLog(guest.disk);
    guest.onDiskWrite = (block, value) => this.disk.write(block, value);
  }

  protected perform(effect: PrimaryEffect): void {
    switch (effect.type) {
      case 'claim':
        this.arbitration.ask(effect.claim);
        return;
      case 'connect':
        this.world.win(0, this.machine.generation);
        this.connect();
        break;
      case 'disconnect':
        this.connecting = false;
        this.closeLink();
        break;
      case 'send':
        this.send(effect.message);
        break;
      case 'connect-bulk':
        this.connectHeartbeats(effect.bulkToken);
        this.connectBulk(effect.connections, effect.bulkToken);
        break;
      case 'disconnect-bulk':
        this.disconnectBulk();
        break;
      case 'install-gate':
        this.qmp('gate', () => this.installGate());
        break;
      case 'hand-over':
        this.handOver();
        break;
      case 'protect':
        this.qmp('protect', () => this.protect());
        break;
      case 'sync':
        this.sync();
        break;
      case 'stop-and-save':
        this.stopAndSave(effect.epoch);
        break;
      case 'capture':
        this.capture(effect.epoch);
        break;
      case 'abandon':
        this.abandon();
        break;
      case 'resume':
        this.qmp('resume', () => this.resume());
        break;
      case 'transmit':
        this.transmit(effect.epoch);
        break;
      case 'release-output':
        this.world.gate?.release(effect.epoch);
        return;
      case 'sync-disks':
        this.lineage = effect.lineage;
        this.syncDisks(this.known !== null && this.known === effect.lineages[0]);
        break;
      case 'confirm-disks':
        this.disk.confirm(effect.epoch);
        this.known = this.lineage;
        return;
      case 'stand-still':
        this.standStill();
        break;
      case 'leave-vm':
        this.world.leaveVm();
        return;
      case 'drilled':
        return;
      case 'stop-vm':
        this.world.requireLost();
        this.guest.running = false;
        return;
      case 'quit-vm':
        if (this.machine.state === 'FENCED') this.world.requireLost();
        this.world.killGuest('P');
        return;
      case 'finished':
        if (effect.outcome === 'refused') violated(7, 'the primary gives a VM up that nobody took over');
        this.finished = true;
        this.arbitration.close();
        this.closeLink();
        this.disconnectBulk();
        return;
      case 'state':
        return;
    }
  }

  /** QEMU is gone: commands fail, and the shell learns it. */
  guestDied(): void {
    this.world.clock.after(this.world.random.between(0, 5), () =>
      this.dispatch({ type: 'vm-lost', reason: 'the QEMU process ended' }),
    );
  }

  override kill(withHost: boolean): void {
    super.kill(withHost);
    this.arbitration.close();
    for (const channel of this.channels) channel.kill(0, withHost);
    this.guest.dirty.clear();
    this.guest.onDiskWrite = () => {};
  }

  // --- connections -----------------------------------------------------------------------------------------------------------------

  private connect(): void {
    const { world } = this;
    this.connecting = true;
    world.clock.after(world.random.between(0.2, 4), () => {
      if (!this.connecting || !this.alive || this.finished) return;
      this.connecting = false;
      const link = new Connection<Uint8Array>(world);
      if (world.partitioned || !world.secondary?.accept(link)) {
        this.dispatch({ type: 'peer-lost', reason: 'connection refused' });
        return;
      }
      world.control = link;
      this.takeLink(link);
      this.dispatch({ type: 'peer-connected', lineage: this.world.newId() });
    });
  }

  private connectHeartbeats(token: string): void {
    const connection = new Connection<'beat'>(this.world);
    if (this.world.partitioned || !this.world.secondary?.acceptHeartbeats(connection, token))
      connection.blackhole();
    this.world.heartbeats = connection;
    this.beginHeartbeats(connection);
  }

  private connectBulk(connections: number, token: string): void {
    this.engine('bulk', this.world.random.between(0.5, 4), () => {
      const channels = Array.from({ length: connections }, () => new Connection<BulkFrame>(this.world));
      if (this.world.partitioned || !this.world.secondary?.acceptBulk(channels, token)) return null;
      for (const channel of channels) {
        channel.attach(
          0,
          () => {},
          () => this.disconnectBulk(),
        );
      }
      this.channels = channels;
      this.world.bulk = channels;
      return { type: 'bulk-connected' };
    });
  }

  private disconnectBulk(): void {
    for (const channel of this.channels) channel.close(0);
    this.channels = [];
    this.disk.end();
    const { job } = this;
    if (job === null || job.over || job.step === 'capture') return;
    job.over = true;
    this.world.clock.after(this.world.random.between(0, 30), () => {
      this.job = null;
      this.dispatch({ type: 'step-failed', step: job.step, reason: 'the bulk connection is closed' });
    });
  }

  // --- the engine ------------------------------------------------------------------------------------------------------------------

  /** One block after the other: what was logged so far goes first, then the block is read, then it is sent. */
  private syncDisks(known: boolean): void {
    const { random, clock } = this.world;
    this.disk.begin(!known);
    let read: DiskWrite | null = null;
    const step = (): boolean => {
      if (read !== null) {
        this.putDisk(0, [read]);
        read = null;
        return true;
      }
      const block = this.disk.nextDiffering();
      if (block === null) return false;
      this.putDisk(0, this.disk.takeFirstCopyWrites());
      read = [block, this.disk.read(block)];
      return true;
    };
    const job = this.engine('disks', random.between(30, 90), () => {
      while (step());
      return { type: 'disks-synced' };
    });
    const next = () => {
      if (job.over || !this.alive) return;
      step();
      clock.after(random.between(1, 6), next);
    };
    next();
  }

  private putDisk(epoch: number, writes: DiskWrite[]): void {
    if (writes.length > 0) this.put(0, { kind: 'disk', epoch, writes });
  }

  private sync(): void {
    const { random, clock } = this.world;
    const lastsMs = random.between(5, 40);
    const job = this.engine('sync', lastsMs, () => {
      this.putDisk(0, this.disk.takeFirstCopyWrites());
      this.putEnds(0);
      return { type: 'synced' };
    });
    for (let page = 0; page < PAGES; page++) {
      clock.after((lastsMs * page) / PAGES, () => {
        const value = this.guest.ram[page] as number;
        this.shadow.set(page, value);
        if (!job.over) this.put(page, { kind: 'pages', epoch: 0, pages: [[page, value]] });
      });
    }
  }

  private capture(epoch: number): void {
    if (this.guest.running && !this.world.resumedByOthers) violated(5, `capture ${epoch} while the VM runs`);
    this.engine('capture', this.world.random.between(0.2, 2), () => {
      this.world.gate?.seal(epoch);
      this.disk.seal(epoch);
      // INVARIANT 3 is the machine's to keep: after a failure only `abandon` makes these pages dirty again.
      this.captured = new Map([...this.guest.dirty].map((page) => [page, this.guest.ram[page] as number]));
      this.guest.dirty.clear();
      if (this.fails()) return null;
      this.world.captured(this.machine.generation, epoch, this.guest.snapshot());
      return { type: 'captured', epoch, pages: this.captured.size };
    });
  }

  private abandon(): void {
    if (this.job !== null) violated(3, 'abandon while the engine works');
    for (const page of this.captured.keys()) this.guest.dirty.add(page);
    this.captured.clear();
    this.disk.unseal();
  }

  private transmit(epoch: number): void {
    const { vmstate } = this;
    const pages = [...this.captured].filter(([page, value]) => this.shadow.get(page) !== value);
    this.captured.clear();
    for (const [page, value] of pages) this.shadow.set(page, value);
    this.engine('transmit', this.world.random.between(3, 15), () => {
      const writes = this.disk.takeSealed(epoch);
      if (writes === null) return null;
      if (this.vmstate !== vmstate) violated(2, 'the device state was overwritten while it was sent');
      for (const page of pages) this.put(page[0], { kind: 'pages', epoch, pages: [page] });
      this.put(0, { kind: 'vmstate', epoch, device: vmstate });
      this.putDisk(epoch, writes);
      this.putEnds(epoch);
      return { type: 'transmitted', epoch };
    });
  }

  private putEnds(epoch: number): void {
    for (let index = 0; index < this.channels.length; index++) this.put(index, { kind: 'end', epoch });
  }

  private put(where: number, frame: BulkFrame): void {
    this.channels[where % Math.max(1, this.channels.length)]?.send(0, frame);
  }

  /** One job at a time; null from `work` is a failure. */
  private engine(
    step: PrimaryStep,
    lastsMs: number,
    work: () => EventBody<PrimaryEvent> | null,
  ): { over: boolean } {
    if (this.job !== null) violated(3, `${step} while the engine does ${this.job.step}`);
    const job = { step, over: false };
    this.job = job;
    this.world.clock.after(lastsMs, () => {
      if (job.over || !this.alive) return;
      job.over = true;
      const answer = this.fails() && step !== 'capture' ? null : work();
      this.job = null;
      this.dispatch(answer ?? { type: 'step-failed', step, reason: 'the world is bad' });
    });
    return job;
  }

  // --- QMP -------------------------------------------------------------------------------------------------------------------------

  private installGate(): void {
    const gate = new Gate(this.world);
    gate.onHeld = () => this.world.clock.after(0, () => this.dispatch({ type: 'output-held' }));
    this.world.gate = gate;
    this.dispatch({ type: 'gate-installed' });
  }

  private handOver(): void {
    this.queued(() => {
      this.world.handOver();
      this.dispatch({ type: 'handed-over' });
    });
  }

  private protect(): void {
    this.guest.dirty.clear();
    this.dispatch({ type: 'protected' });
  }

  private stopAndSave(epoch: number): void {
    this.queued(() => {
      const wasRunning = this.guest.running;
      const failed = this.fails();
      if (!failed || this.world.random.chance(0.5)) {
        this.guest.running = false;
        this.stopped ||= wasRunning;
        this.world.resumedByOthers = false;
      }
      if (failed) this.dispatch({ type: 'step-failed', step: 'stop', reason: 'the world is bad' });
      else this.dispatch({ type: 'stopped', epoch, wasRunning });
      if (!failed) this.qmp('save', () => this.save(epoch));
    });
  }

  private standStill(): void {
    this.qmp('stand', () => {
      const wasRunning = this.guest.running;
      this.guest.running = false;
      this.stopped ||= wasRunning;
      this.dispatch({ type: 'stood', wasRunning });
    });
  }

  private save(epoch: number): void {
    this.vmstate = this.guest.device;
    this.dispatch({ type: 'saved', epoch, vmstateBytes: 1000 });
  }

  private resume(): void {
    if (this.stopped && this.guest.alive && !this.guest.shutDown) this.guest.running = true;
    this.stopped = false;
    this.dispatch({ type: 'resumed' });
  }

  private qmp(step: PrimaryStep, work: () => void): void {
    this.queued(() => {
      if (this.fails()) this.dispatch({ type: 'step-failed', step, reason: 'the world is bad' });
      else work();
    });
  }

  /** Commands take their time and don't overtake each other; a dead QEMU answers none, the shell hears of its death instead. */
  private queued(work: () => void): void {
    const { clock, random } = this.world;
    this.queueFreeMs = Math.max(this.queueFreeMs, clock.nowMs) + random.between(0.1, 2);
    clock.at(this.queueFreeMs, () => {
      if (this.alive && !this.finished && this.guest.alive) work();
    });
  }

  private fails(): boolean {
    return this.world.random.chance(this.world.options.stepFailures * (this.world.calm ? 0 : 1));
  }
}
