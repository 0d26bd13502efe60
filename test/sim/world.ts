/**
 * A world of two hosts, one guest and a network, in which both machines run against model shells. Everything that happens follows from the seed.
 * The invariants are those of docs/architecture.md; each is checked by an oracle that knows more than the machines do.
 */
import { Arbiter, type Memory } from '../../src/protocol/arbiter.ts';
import {
  DEFAULT_TIMINGS,
  type PrimaryOptions,
  type SecondaryOptions,
  type Timings,
} from '../../src/protocol/machine.ts';
import { PrimaryMachine } from '../../src/protocol/primary.ts';
import { SecondaryMachine } from '../../src/protocol/secondary.ts';
import { Clock, Random } from './clock.ts';
import { StandbyDisk } from './disks.ts';
import { Etcd } from './etcd.ts';
import { type Gate, Guest, type Snapshot } from './guest.ts';
import type { Connection } from './network.ts';
import { PrimaryAgent, type PrimaryObserved } from './primary-host.ts';
import { type BulkFrame, SecondaryAgent, type SecondaryObserved } from './secondary-host.ts';

export class InvariantViolation extends Error {
  readonly invariant: number;

  constructor(invariant: number, text: string) {
    super(`INVARIANT ${invariant}: ${text}`);
    this.invariant = invariant;
  }
}

export function violated(invariant: number, text: string): never {
  throw new InvariantViolation(invariant, text);
}

export type Victim = 'P-agent' | 'P-qemu' | 'P-host' | 'S-agent' | 'S-qemu' | 'S-host';

export interface WorldOptions {
  seed: number;
  mode: 'pipelined' | 'strict';
  failover: SecondaryOptions['failover'];
  connections: number;
  /** How often a step of the shells fails. */
  stepFailures: number;
  /** How often a control message arrives damaged. */
  corruption: number;
  /** How often a request to the witness or its answer is lost, late or doubled. */
  witnessFaults: number;
  /** A host that dies takes with it what is under way. */
  lossyCrashes: boolean;
  /** The victim dies when this side has carried out so many effects. */
  crash?: { side: 0 | 1; effects: number; victim: Victim };
  makePrimary(options: PrimaryOptions): PrimaryObserved;
  makeSecondary(options: SecondaryOptions): SecondaryObserved;
  makeArbiter(node: string, memory: Memory): Arbiter;
}

export const QUIET: Omit<WorldOptions, 'seed'> = {
  mode: 'pipelined',
  failover: 'ordered',
  connections: 2,
  stepFailures: 0,
  corruption: 0,
  witnessFaults: 0,
  lossyCrashes: false,
  makePrimary: (options) => new PrimaryMachine(options),
  makeSecondary: (options) => new SecondaryMachine(options),
  makeArbiter: (node, memory) => new Arbiter(node, memory),
};

const TIMINGS: Timings = {
  ...DEFAULT_TIMINGS,
  intervalMs: 40,
  heartbeatMs: 50,
  peerTimeoutMs: 300,
  reconnectMs: 60,
};
const VM_ID = 'ab'.repeat(16);
/** Longer than every time-out that a stopped VM may wait for. */
const STANDING_MAX_MS = 15_000;

const TRACED_MS = 2500;

export class World {
  readonly options: WorldOptions;
  readonly random: Random;
  readonly clock = new Clock();
  /** What the hosts call themselves: the primary's, then the standby's. */
  readonly nodes: [string, string] = ['north', 'south'];
  pvm: Guest;
  /** On the standby's host. */
  standbyDisk = new StandbyDisk();
  /** One that was taken out, with all that is on it, and may come back. */
  private otherDisk = new StandbyDisk();
  svm: Guest;
  gate: Gate | null = null;
  primary: PrimaryAgent | null = null;
  secondary: SecondaryAgent | null = null;
  control: Connection<Uint8Array> | null = null;
  bulk: Connection<BulkFrame>[] = [];
  heartbeats: Connection<'beat'> | null = null;
  readonly timings = TIMINGS;
  partitioned = false;
  readonly etcd: Etcd;
  /** What each host has recorded as the newest generation. */
  readonly recorded: [number, number] = [0, 0];
  /** And of those that it has won. */
  readonly wins: [number, number] = [0, 0];
  /** Sides for which a person has stood in for the witness, which may not know of it yet. */
  readonly forced: [boolean, boolean] = [false, false];
  /** The standby that a person has ordered to take over, without a witness. */
  ordered: SecondaryAgent | null = null;
  /** That person was wrong: two run for a while. */
  mistaken = false;
  /** Since the last stop of ours, which may have been for nothing: it may have stood already. */
  resumedByOthers = false;
  /** No step fails by itself any more. */
  calm = false;
  /** The crash of the options has happened. */
  crashed = false;
  /** How many processes and hosts have been killed. */
  deaths = 0;
  /** The standby's VM has been let run. */
  private tookOver = false;
  /** How many epochs the standby has confirmed. */
  commits = 0;
  readonly log: string[] = [];
  tracing = false;
  private readonly snapshots = new Map<string, Snapshot>();
  /** The newest state that the standby has promised, and the newest that the outside has seen a frame of. */
  private promised = 0;
  private ids = 0;
  private seen = 0;
  private effects: [number, number] = [0, 0];
  private standingSinceMs: number | null = null;

  constructor(options: WorldOptions) {
    this.options = options;
    this.random = new Random(options.seed);
    this.etcd = new Etcd(this);
    this.pvm = new Guest(this);
    this.pvm.running = true;
    this.wireFrames();
    this.svm = new Guest(this, this.standbyDisk.blocks);
    this.startSecondary();
    this.startPrimary();
    this.checkOften();
  }

  private wireFrames(): void {
    this.pvm.onFrame = (device) =>
      this.gate === null ? this.leaveUnprotected(device) : this.gate.frame(device);
  }

  /** A VM that nobody cares for causes no events. */
  private checkOften(): void {
    this.check();
    this.clock.after(1000, () => this.checkOften());
  }

  // --- agents ----------------------------------------------------------------------------------------------------------------------

  startPrimary(tookOver = false): void {
    const { mode, connections } = this.options;
    const machine = this.options.makePrimary({
      vmId: VM_ID,
      mode,
      connections,
      description: { machine: 'model' },
      generation: Math.max(1, this.recorded[0]),
      node: this.nodes[0],
      arbitration: this.witnessed ? 'witness' : 'none',
      timings: TIMINGS,
      copiesDisks: true,
      tookOver,
      forced: false,
      tookPart: this.recorded[0] > 0,
      foundClosedGate: this.gate !== null,
    });
    this.primary = new PrimaryAgent(this, this.pvm, machine);
    this.primary.dispatch({ type: 'start' });
  }

  startSecondary(): void {
    if (!this.svm.alive) this.svm = new Guest(this, this.standbyDisk.blocks);
    const { failover } = this.options;
    const machine = this.options.makeSecondary({
      vmId: VM_ID,
      generation: this.recorded[1],
      node: this.nodes[1],
      failover,
      timings: TIMINGS,
    });
    this.secondary = new SecondaryAgent(this, this.svm, machine);
    this.secondary.dispatch({ type: 'start' });
  }

  /**
   * After a take-over and the death of the primary's host: the survivor's agent goes on as the primary, and the other host comes back as the standby's, with
   * the disk that it had.
   */
  succeed(): void {
    this.trace('* the survivor is the primary');
    const old = this.pvm;
    this.secondary?.kill(false);
    this.nodes.reverse();
    this.recorded.reverse();
    this.wins.reverse();
    this.pvm = this.svm;
    this.wireFrames();
    this.gate = null;
    this.tookOver = false;
    this.standbyDisk = new StandbyDisk();
    this.standbyDisk.blocks.splice(0, old.disk.length, ...old.disk);
    this.svm = new Guest(this, this.standbyDisk.blocks);
    this.startSecondary();
    this.startPrimary(true);
  }

  kill(victim: Victim): void {
    this.trace(`* ${victim} dies`);
    this.deaths++;
    const primary = victim.startsWith('P');
    if (!victim.endsWith('agent')) this.killGuest(primary ? 'P' : 'S', victim.endsWith('host'));
    if (victim.endsWith('qemu')) return;
    (primary ? this.primary : this.secondary)?.kill(victim.endsWith('host'));
    if (victim === 'S-host') this.standbyDisk.hostCrashed();
    // The gate is a part of the agent: it fails closed.
    if (primary && this.gate !== null) this.gate.dead = true;
  }

  /** The standby ends, and begins again with another disk. */
  swapStandbyDisk(): void {
    if (this.svm.running) return;
    this.trace("* the standby's disk is another one");
    this.kill('S-qemu');
    this.kill('S-agent');
    [this.standbyDisk, this.otherDisk] = [this.otherDisk, this.standbyDisk];
  }

  killGuest(which: 'P' | 'S', withHost = false): void {
    const guest = which === 'P' ? this.pvm : this.svm;
    if (!guest.alive) return;
    guest.die();
    if (!withHost) (which === 'P' ? this.primary : this.secondary)?.guestDied();
  }

  effectDone(side: 0 | 1): void {
    const { crash } = this.options;
    this.effects[side]++;
    if (crash?.side !== side || crash.effects !== this.effects[side]) return;
    this.crashed = true;
    this.kill(crash.victim);
  }

  effectsOf(side: 0 | 1): number {
    return this.effects[side];
  }

  // --- what the oracles know -------------------------------------------------------------------------------------------------------

  captured(generation: number, epoch: number, snapshot: Snapshot): void {
    this.snapshots.set(`${generation}/${epoch}`, snapshot);
  }

  committed(generation: number, epoch: number): void {
    this.commits++;
    this.promised = this.snapshotOf(generation, epoch).device;
  }

  /** INVARIANT 1, from the outside: a frame of a protected guest leaves only if the standby knows the state that sent it. */
  leaveCommitted(device: number): void {
    if (device > this.promised)
      violated(1, `a frame of state ${device} left, the standby knows ${this.promised}`);
    this.seen = Math.max(this.seen, device);
  }

  leaveUnprotected(device: number): void {
    this.seen = Math.max(this.seen, device);
  }

  get newestSeen(): number {
    return this.seen;
  }

  /** INVARIANTS 2 and 3: what the standby holds is exactly one state of the primary, page for page. */
  compare(generation: number, epoch: number, actual: Snapshot): void {
    const expected = this.snapshotOf(generation, epoch);
    const page = expected.ram.findIndex((value, index) => value !== actual.ram[index]);
    if (page >= 0)
      violated(
        3,
        `generation ${generation}, epoch ${epoch}: page ${page} is ${actual.ram[page]}, was ${expected.ram[page]}`,
      );
    const block = expected.disk.findIndex((value, index) => value !== actual.disk[index]);
    if (block >= 0)
      violated(
        3,
        `generation ${generation}, epoch ${epoch}: disk block ${block} is ${actual.disk[block]}, was ${expected.disk[block]}`,
      );
    if (expected.device !== actual.device)
      violated(2, `device state ${actual.device} instead of ${expected.device}`);
  }

  snapshotOf(generation: number, epoch: number): Snapshot {
    const snapshot = this.snapshots.get(`${generation}/${epoch}`);
    if (snapshot === undefined) violated(2, `generation ${generation}, epoch ${epoch} was never captured`);
    return snapshot;
  }

  promoted(device: number): void {
    this.tookOver = true;
    if (this.seen > device && !this.mistaken)
      violated(1, `the world has seen state ${this.seen}, the standby resumes at ${device}`);
  }

  get witnessed(): boolean {
    return this.options.failover === 'claimed';
  }

  /** INVARIANT 4: only who holds the generation alone opens its gate, or runs. */
  requireAlone(side: 0 | 1, what: string): void {
    if (!this.witnessed || this.forced[side]) return;
    const { record } = this.etcd.entry;
    if (record?.mode !== 'alone' || record.primary !== this.nodes[side])
      violated(4, `${this.nodes[side]} ${what}, the witness has ${JSON.stringify(record)}`);
  }

  /** INVARIANT 7: nobody destroys the VM that the witness wants to run. */
  requireLost(): void {
    if (this.witnessed && this.etcd.entry.record?.primary === this.nodes[0])
      violated(7, `the primary is fenced, the witness has ${JSON.stringify(this.etcd.entry.record)}`);
  }

  /** INVARIANT 7: a VM is given up only for one that runs, or that alone may run. Whoever may have resumed it, it stands from here on. */
  leaveVm(): void {
    const won = this.witnessed && this.etcd.entry.record?.primary === this.nodes[1];
    if (!this.tookOver && !won) violated(7, 'the VM is left, and the standby has neither run nor won it');
    this.pvm.left = true;
    this.pvm.running = false;
    if (this.gate !== null) this.gate.dead = true;
  }

  handOver(): void {
    this.requireAlone(0, 'opens its gate');
    if (this.gate !== null && !this.gate.dead) this.gate.open();
    this.gate = null;
  }

  record(side: 0 | 1, generation: number): void {
    this.recorded[side] = Math.max(this.recorded[side], generation);
  }

  win(side: 0 | 1, generation: number): void {
    this.record(side, generation);
    this.wins[side] = Math.max(this.wins[side], generation);
  }

  newId(): string {
    return String(++this.ids).padStart(32, '0');
  }

  /** After every event. */
  check(): void {
    const { pvm, svm, clock } = this;
    const open = this.gate === null || this.gate.passes;
    if (pvm.left && pvm.running) violated(4, 'a VM runs that was handed over');
    if (svm.running && pvm.running && open && !this.mistaken) violated(4, 'two VMs run with an open gate');
    const holder = this.etcd.entry.record?.primary;
    if (this.witnessed && svm.running && holder !== this.nodes[1] && !this.forced[1])
      violated(4, 'the standby runs without a generation');
    if (this.witnessed && pvm.running && open && holder === this.nodes[1] && !this.mistaken)
      violated(4, 'the primary runs with an open gate after it lost its generation');
    const standing = this.primary?.alive && pvm.alive && this.primary.stopped && !pvm.running;
    this.standingSinceMs = standing ? (this.standingSinceMs ?? clock.nowMs) : null;
    if (this.standingSinceMs !== null && clock.nowMs - this.standingSinceMs > STANDING_MAX_MS) {
      violated(7, `the VM has stood for ${STANDING_MAX_MS} ms`);
    }
  }

  trace(line: string): void {
    // What goes on for ever in a world that doesn't settle would push out what led to it.
    if (this.tracing && this.clock.nowMs < TRACED_MS)
      this.log.push(`${this.clock.nowMs.toFixed(2).padStart(9)} ${line}`);
  }

  /** Lets time pass until `done`, or `limitMs` from now: then false. */
  runUntil(done: () => boolean, limitMs: number): boolean {
    const endMs = this.clock.nowMs + limitMs;
    while (this.clock.nowMs < endMs) {
      if (done()) return true;
      if (!this.clock.fire()) return done();
    }
    return done();
  }
}
