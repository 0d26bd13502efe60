/** The primary's shell: one protected VM, its QMP connection, the native parts and the link to the standby, run as the machine says. */

import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { TlsCredentials } from '../native/binding.ts';
import type { PrimaryEffect, PrimaryEvent, StateWord, Timings } from '../protocol/machine.ts';
import type { Mode } from '../protocol/messages.ts';
import { PrimaryMachine } from '../protocol/primary.ts';
import { vmIdOf } from '../protocol/vm-id.ts';
import type { AcceptedExceptions } from '../vm/preflight.ts';
import {
  type Arbitration,
  arbitrationOf,
  closingOnFailure,
  noWitness,
  type WitnessChoice,
} from './arbitration.ts';
import { ControlError } from './control-server.ts';
import { type DrillReport, DrillWatch } from './drill-report.ts';
import { Driver, monotonicMs } from './driver.ts';
import { GenerationFile } from './generation-file.ts';
import type { LinkStatus } from './link-security.ts';
import type { Log } from './log.ts';
import { connectPeer, type HostPort } from './peer-address.ts';
import { PeerHeartbeat } from './peer-heartbeat.ts';
import type { PeerLink } from './peer-link.ts';
import { attachPrimary } from './primary-attach.ts';
import { PrimaryMeters } from './primary-meters.ts';
import { PrimaryTrace } from './primary-trace.ts';
import type { PrimaryVm } from './primary-vm.ts';
import type { PrimaryStatus } from './status.ts';
import { tellSupervisor } from './supervisor-channel.ts';
import { assertWitnessAccess } from './witness-access.ts';

export interface PrimaryAgentOptions {
  vm: string;
  qmpPath: string;
  peer: HostPort;
  /** Null: plain text. */
  credentials: TlsCredentials | null;
  mode: Mode;
  connections: number;
  timings: Timings;
  tracker: 'auto' | 'userfaultfd' | 'compare';
  shadow: boolean;
  threads: number;
  /** RAM that is hashed for each checkpoint; 0: no scrub. */
  scrubSliceBytes: number;
  syncBytesPerSecond: number;
  gateLimitBytes: number;
  diskBufferBytes: number;
  exceptions: AcceptedExceptions;
  /** After a drill the VM is to be a standby's: found out now whether it can be. */
  standsByLater: boolean;
  witness: WitnessChoice;
  /** What this host calls itself. */
  node: string;
  /**
   * This very process has taken the VM over: called once, when nothing can keep this agent from going on with it, which is answerable for the VM from then on. May throw
   * instead: there is nothing to go on with. Null: another process, or nobody, had it before.
   */
  inherit: (() => Inheritance) | null;
  /** Where the newest generation is kept. */
  stateFolder: string;
  /** The file for a breakdown of each checkpoint, or null. */
  traceFile: string | null;
  log: Log;
}

/** What a survivor leaves to the primary that it becomes. */
export interface Inheritance {
  /** The very same object, which may be writing: two would undo each other's. */
  generations: GenerationFile;
  /** Nobody can dispute the newest generation in there. If not it was a person's word, which the witness doesn't know of and is told first. */
  undisputed: boolean;
}

/** Less than a client waits for its answer. */
const FORCED_STOP_MS = 20_000;

export interface AgentOutcome {
  outcome: (PrimaryEffect & { type: 'finished' })['outcome'];
  reason: string;
}

type EventBody = PrimaryEvent extends infer E ? (E extends PrimaryEvent ? Omit<E, 'nowMs'> : never) : never;

export class PrimaryAgent {
  readonly #options: PrimaryAgentOptions;
  readonly #vm: PrimaryVm;
  readonly #meters: PrimaryMeters;
  readonly #trace: PrimaryTrace | null;
  readonly #machine: PrimaryMachine;
  readonly #driver: Driver<PrimaryEvent, PrimaryEffect>;
  readonly #generations: GenerationFile;
  readonly #arbitration: Arbitration | null;
  readonly #finished: Promise<AgentOutcome>;
  #finish: (outcome: AgentOutcome) => void = () => {};
  readonly #heartbeat: PeerHeartbeat;
  #link: PeerLink | null = null;
  #linkStatus: LinkStatus | null = null;
  /** Where the standby was reached; a name no more. */
  #peerAddress: HostPort;
  #cancelConnect: (() => void) | null = null;
  /** While a person waits for a planned failover. */
  #drill: { watch: DrillWatch; end: (failure: string | null) => void } | null = null;
  /** What the standby's host calls itself. */
  #standbyNode = '';
  /** When it has ended. */
  #final: PrimaryStatus | null = null;
  #state: StateWord = 'STARTING';
  #reason = '';

  /**
   * Attaches to the VM without stopping it. Throws (PreflightError, QmpError, NativeError, GenerationFileError, WitnessAccessError, what `inherit` throws) when it can't be
   * protected; it is unharmed then, and the connection to the witness is closed.
   */
  static attach(options: PrimaryAgentOptions): Promise<PrimaryAgent> {
    return closingOnFailure(options.witness, () => PrimaryAgent.#attach(options));
  }

  static async #attach(options: PrimaryAgentOptions): Promise<PrimaryAgent> {
    const { traceFile, vm: name, stateFolder, node, log, inherit } = options;
    const generations = new GenerationFile(stateFolder, name, node);
    // A survivor's VM runs already, whatever the witness says.
    if (inherit === null) await assertWitnessAccess(options.witness, log);
    const trace = traceFile === null ? null : await PrimaryTrace.open(traceFile, name, log);
    let vm: PrimaryVm | null = null;
    try {
      vm = await attachPrimary(options);
      return new PrimaryAgent(options, vm, trace, inherit?.() ?? { generations, undisputed: null });
    } catch (error) {
      await vm?.detach();
      await trace?.close();
      throw error;
    }
  }

  private constructor(
    options: PrimaryAgentOptions,
    vm: PrimaryVm,
    trace: PrimaryTrace | null,
    { generations, undisputed }: Inheritance | { generations: GenerationFile; undisputed: null },
  ) {
    const { witness, node, log } = options;
    this.#options = options;
    this.#peerAddress = options.peer;
    this.#vm = vm;
    this.#generations = generations;
    this.#trace = trace;
    this.#meters = new PrimaryMeters(trace);
    this.#heartbeat = new PeerHeartbeat({
      peer: 'secondary',
      timings: options.timings,
      log: options.log,
      onSilent: (reason, heardMs) => this.#dispatch({ type: 'peer-silent', reason, heardMs }),
      onMalformed: (reason) => this.#dispatch({ type: 'peer-malformed', reason }),
    });
    this.#finished = new Promise((resolve) => {
      this.#finish = resolve;
    });
    this.#machine = new PrimaryMachine({
      vmId: vmIdOf(options.vm),
      mode: options.mode,
      connections: options.connections,
      description: vm.description,
      copiesDisks: vm.disks.any,
      generation: Math.max(vm.disks.generation, generations.highest),
      node,
      arbitration: witness.kind === 'etcd' ? 'witness' : 'none',
      timings: options.timings,
      tookOver: undisputed === true,
      forced: undisputed === false,
      tookPart: generations.highest > 0,
      foundClosedGate: vm.foundClosedGate,
    });
    this.#driver = new Driver(
      this.#machine,
      (effect) => {
        trace?.effect(effect);
        this.#drill?.watch.effect(effect, monotonicMs());
        this.#perform(effect);
      },
      (event) => {
        trace?.event(event);
        this.#drill?.watch.event(event);
        this.#meters.observe(event);
      },
    );
    this.#arbitration = arbitrationOf(witness, { node, generations, log }, (event) => this.#dispatch(event));
    vm.listen({
      onEvent: (event) => this.#dispatch(event),
      onPauseEnded: (pauseMs) => this.#meters.pauseEnded(pauseMs),
      onReleased: (epoch) => trace?.released(epoch),
    });
  }

  /** Runs until protection has ended, for whatever reason, and everything is detached. */
  async run(): Promise<AgentOutcome> {
    this.#dispatch({ type: 'start' });
    const outcome = await this.#finished;
    this.#final = this.status();
    this.#driver.stop();
    this.#arbitration?.close();
    this.#heartbeat.end();
    this.#link?.close();
    this.#cancelConnect?.();
    await this.#vm.detach();
    await this.#trace?.close();
    return outcome;
  }

  /**
   * Ends protection. `force`: a person says that the standby doesn't run, whatever the witness may say; what comes of it is waited for then, for a while, and in the text
   * that is resolved with.
   */
  async stop(force = false): Promise<string> {
    if (this.#final !== null) return hasEnded(this.#final.reason);
    this.#dispatch({ type: 'command', command: force ? 'force-stop' : 'stop' });
    const begun = 'protection ends; the VM keeps running';
    if (!force) return begun;
    const ended = this.#finished.then(({ outcome, reason }) =>
      outcome === 'stopped' ? `protection has ended; the VM keeps running (${reason})` : reason,
    );
    return Promise.race([ended, sleep(FORCED_STOP_MS, begun, { ref: false })]);
  }

  /** Hands the VM over. Resolves when the standby runs it; throws ControlError `refused` with the reason when it doesn't. */
  async drill(): Promise<DrillReport> {
    if (this.#drill !== null) throw new ControlError('refused', 'a drill is under way already');
    if (this.#final !== null) throw new ControlError('refused', hasEnded(this.#final.reason));
    const watch = new DrillWatch(monotonicMs());
    const told = new Promise<string | null>((end) => {
      this.#drill = { watch, end };
      this.#dispatch({ type: 'command', command: 'drill' });
    });
    // The machine's own word on it comes first; after its end there is none.
    const failure = await Promise.race([told, this.#finished.then(({ reason }) => hasEnded(reason))]);
    this.#drill = null;
    if (failure !== null) throw new ControlError('refused', failure);
    return watch.report(this.#options.vm, this.#standbyNode);
  }

  /** The last committed epoch; also of an agent that has ended. */
  get epoch(): number {
    return this.#machine.epoch;
  }

  status(): PrimaryStatus {
    if (this.#final !== null) return this.#final;
    const { heldFrames, heldBytes, droppedFrames } = this.#vm.heldOutput();
    const tracker = this.#vm.tracker;
    return {
      vm: this.#options.vm,
      role: 'primary',
      state: this.#state,
      reason: this.#reason,
      ifPrimaryDies: this.#consequence(),
      witness: this.#arbitration?.status() ?? noWitness(this.#options.witness.kind, this.#options.node),
      generation: this.#machine.generation,
      epoch: this.#machine.epoch,
      lastCheckpointAgeMs: age(this.#machine.lastCommittedAtMs),
      link: this.#link && this.#linkStatus,
      agentPid: process.pid,
      qemuPid: this.#vm.pid,
      mode: this.#options.mode,
      peer: `${this.#options.peer.host}:${this.#options.peer.port}`,
      ...this.#meters.status(),
      heartbeat: this.#heartbeat.stats(),
      heldFrames,
      heldBytes,
      droppedFrames,
      tracker: tracker.kind,
      trackerReason: tracker.reason,
      scrub: { sliceBytes: this.#options.scrubSliceBytes, ...this.#meters.scrub() },
      ungated: this.#options.exceptions.ungatedNics,
      disks: this.#vm.disks.status(),
      ungatedDisks: this.#options.exceptions.ungatedDisks,
      sharedDisks: this.#options.exceptions.sharedDisks,
    };
  }

  #dispatch(body: EventBody): void {
    this.#driver.dispatch({ ...body, nowMs: monotonicMs() } as PrimaryEvent);
  }

  #perform(effect: PrimaryEffect): void {
    switch (effect.type) {
      case 'connect':
        this.#connect();
        break;
      case 'disconnect':
        this.#options.log.info('disconnected', { reason: effect.reason });
        this.#cancelConnect?.();
        this.#link?.close();
        this.#link = null;
        break;
      case 'send':
        this.#link?.send(effect.message);
        break;
      case 'claim':
        this.#arbitration?.ask(effect.claim);
        break;
      case 'drilled':
        this.#drill?.end(effect.failure);
        break;
      case 'state':
        this.#setState(effect.state, effect.reason);
        break;
      case 'finished':
        this.#finish({ outcome: effect.outcome, reason: effect.reason + adviceOn(effect.outcome) });
        break;
      default:
        this.#watchPeer(effect);
        this.#vm.perform(
          effect,
          { peer: this.#peerAddress, credentials: this.#options.credentials },
          this.#machine.generation,
          this.#meters,
        );
    }
  }

  /** Heartbeats go with the bulk connections: from READY to the session's end. */
  #watchPeer(effect: PrimaryEffect): void {
    const { credentials } = this.#options;
    if (effect.type === 'connect-bulk')
      this.#heartbeat.connect(this.#peerAddress, effect.bulkToken, this.#machine.generation, credentials);
    else if (effect.type === 'disconnect-bulk') this.#heartbeat.end();
  }

  #connect(): void {
    let cancelled = false;
    this.#cancelConnect = () => {
      cancelled = true;
    };
    // INVARIANT 4: HELLO tells no generation that isn't recorded on this host and beside the disks.
    const { generation } = this.#machine;
    Promise.all([this.#generations.win(generation), this.#vm.disks.record(generation)]).then(
      () => !cancelled && this.#connectPeer(),
      (error: Error) => !cancelled && this.#dispatch({ type: 'peer-lost', reason: error.message }),
    );
  }

  #connectPeer(): void {
    this.#cancelConnect = connectPeer(this.#options.peer, this.#options.credentials, {
      onConnected: (link, security, address) => {
        this.#link = link;
        this.#peerAddress = address;
        this.#linkStatus = security;
        this.#dispatch({ type: 'peer-connected', lineage: randomBytes(16).toString('hex') });
      },
      onMessage: (message) => {
        if (message.body.type === 'ready') this.#standbyNode = message.body.node;
        this.#dispatch({ type: 'message', message });
      },
      onLost: (reason) => {
        this.#link = null;
        this.#dispatch({ type: 'peer-lost', reason });
      },
    });
  }

  #consequence(): string {
    const { vm, witness } = this.#options;
    const { epoch } = this.#machine;
    if (this.#state !== 'PROTECTED')
      return 'the VM is lost: no standby holds a checkpoint that may be resumed';
    if (witness.kind === 'manual')
      return `the standby waits for \`colo-agent failover --force ${vm}\` at checkpoint ${epoch} or a newer one`;
    if (this.#arbitration?.status().answers === false)
      return `the standby waits at checkpoint ${epoch} or a newer one for the witness, which doesn't answer here`;
    return `the standby resumes at checkpoint ${epoch} or a newer one; open connections go on`;
  }

  #setState(state: StateWord, reason: string): void {
    if (state !== this.#state || reason !== this.#reason) {
      const level = state === 'EXPOSED' || state === 'BLOCKED' || state === 'FENCED' ? 'warn' : 'info';
      this.#options.log[level](state, { reason });
      const { vm } = this.#options;
      const { generation, epoch } = this.#machine;
      tellSupervisor({ type: 'state', vm, role: 'primary', state, reason, generation, epoch });
    }
    this.#state = state;
    this.#reason = reason;
    if (state === 'SYNCING' || state === 'EXPOSED') this.#meters.sessionChanged();
  }
}

function hasEnded(reason: string): string {
  return `protection has ended here: ${reason}`;
}

function adviceOn(outcome: AgentOutcome['outcome']): string {
  if (outcome === 'stale-twin')
    return (
      '. The VM here is an older twin of it: it has been stopped, unless the log says that it could not be, and is left for you to look at. Do not let it go on; end it, and start it with -S as a standby. ' +
      'Hosts should start protected VMs with -S only'
    );
  if (outcome !== 'refused') return '';
  return (
    '. This VM was left as it is. If it is the same VM, end it here and start it as a standby; if it does not run there any more, ' +
    'remove the key (etcdctl del KEY)'
  );
}

function age(atMs: number | null): number | null {
  return atMs === null ? null : Math.round(monotonicMs() - atMs);
}
