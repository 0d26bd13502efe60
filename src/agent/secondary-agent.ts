/** The secondary's shell: one standby VM, the port that its primary connects to, run as the machine says. */
import { Socket } from 'node:net';
import { type Acceptor, native, type PeerConnection, type TlsCredentials } from '../native/binding.ts';
import type { SecondaryEffect, SecondaryEvent, StateWord, Timings } from '../protocol/machine.ts';
import type { Message } from '../protocol/messages.ts';
import { SecondaryMachine } from '../protocol/secondary.ts';
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
import { Driver, monotonicMs } from './driver.ts';
import { type FenceOptions, fence } from './fence.ts';
import { GenerationFile } from './generation-file.ts';
import { type LinkStatus, linkStatus } from './link-security.ts';
import type { Log } from './log.ts';
import { formatHostPort, type HostPort, hostOfPeer } from './peer-address.ts';
import { PeerHeartbeat } from './peer-heartbeat.ts';
import { PeerLink } from './peer-link.ts';
import type { Inheritance } from './primary-agent.ts';
import { Refusals } from './refusals.ts';
import { SecondaryTrace } from './secondary-trace.ts';
import { attachStandby } from './standby-attach.ts';
import type { StandbyVm } from './standby-vm.ts';
import type { SecondaryStatus } from './status.ts';
import { tellSupervisor } from './supervisor-channel.ts';
import { TakeOvers } from './take-overs.ts';
import { assertWitnessAccess } from './witness-access.ts';

export interface SecondaryAgentOptions {
  vm: string;
  qmpPath: string;
  listen: HostPort;
  /** Null: plain text. */
  credentials: TlsCredentials | null;
  witness: WitnessChoice;
  /** What this host calls itself. */
  node: string;
  /** Where the newest generation is kept. */
  stateFolder: string;
  overwriteDisks: readonly string[];
  /** The VM is to be protected here after a take-over, but for these; null: it isn't. */
  succeed: AcceptedExceptions | null;
  /** What has to succeed before a take-over lets the VM run, or null. */
  fence: FenceOptions | null;
  timings: Timings;
  /** The file for a breakdown of each checkpoint and of a failover, or null. */
  traceFile: string | null;
  log: Log;
}

export interface SecondaryOutcome {
  outcome: (SecondaryEffect & { type: 'finished' })['outcome'];
  reason: string;
}

const FAILOVER = { etcd: 'claimed', none: 'granted', manual: 'ordered' } as const;

type EventBody = SecondaryEvent extends infer E
  ? E extends SecondaryEvent
    ? Omit<E, 'nowMs'>
    : never
  : never;

export class SecondaryAgent {
  /** Resolves when the VM has been taken over; stays open if it never is. */
  readonly tookOver: Promise<void>;
  #tellTookOver: () => void = () => {};
  readonly #options: SecondaryAgentOptions;
  readonly #vm: StandbyVm;
  readonly #trace: SecondaryTrace | null;
  readonly #takeOvers: TakeOvers;
  readonly #acceptor: Acceptor;
  readonly #machine: SecondaryMachine;
  readonly #driver: Driver<SecondaryEvent, SecondaryEffect>;
  readonly #generations: GenerationFile;
  readonly #arbitration: Arbitration | null;
  readonly #finished: Promise<SecondaryOutcome>;
  #finish: (outcome: SecondaryOutcome) => void = () => {};
  #ended = false;
  readonly #heartbeat: PeerHeartbeat;
  #link: PeerLink | null = null;
  #linkStatus: LinkStatus | null = null;
  /** The addresses of who is connected, and of the last primary that had a session here. */
  #peerHost = '';
  #primaryHost = '';
  /** A person has fenced, or knows that it isn't needed. */
  readonly #fenceSkipped = new AbortController();
  #state: StateWord = 'STARTING';
  #reason = '';
  /** Who waits for the next change of state. */
  readonly #waiting = new Set<() => void>();

  /** Attaches to a VM started with -S and listens. Throws NotAStandbyError, PreflightError, QmpError, NativeError, GenerationFileError or WitnessAccessError, with the connection to the witness closed. */
  static attach(
    options: SecondaryAgentOptions,
    takeOvers: TakeOvers = new TakeOvers(options.vm),
  ): Promise<SecondaryAgent> {
    return closingOnFailure(options.witness, () => SecondaryAgent.#attach(options, takeOvers));
  }

  static async #attach(options: SecondaryAgentOptions, takeOvers: TakeOvers): Promise<SecondaryAgent> {
    const { traceFile, vm: name, stateFolder, node, log } = options;
    const generations = new GenerationFile(stateFolder, name, node);
    await assertWitnessAccess(options.witness, log);
    const trace = traceFile === null ? null : await SecondaryTrace.open(traceFile, name, log);
    let vm: StandbyVm | null = null;
    try {
      vm = await attachStandby(options, trace, takeOvers);
      return new SecondaryAgent(options, vm, generations, trace, takeOvers);
    } catch (error) {
      await vm?.detach();
      await trace?.close();
      throw error;
    }
  }

  private constructor(
    options: SecondaryAgentOptions,
    vm: StandbyVm,
    generations: GenerationFile,
    trace: SecondaryTrace | null,
    takeOvers: TakeOvers,
  ) {
    const { witness, node, log } = options;
    this.#options = options;
    this.#vm = vm;
    this.#generations = generations;
    this.#trace = trace;
    this.#takeOvers = takeOvers;
    this.#heartbeat = new PeerHeartbeat({
      peer: 'primary',
      timings: options.timings,
      log: options.log,
      onSilent: (reason, heardMs) => this.#dispatch({ type: 'peer-silent', reason, heardMs }),
      onMalformed: (reason) => this.#dispatch({ type: 'peer-malformed', reason }),
    });
    const refusals = new Refusals(log);
    this.#acceptor = new native.Acceptor({
      host: options.listen.host,
      port: options.listen.port,
      credentials: options.credentials,
      onAccepted: (link, connection, preface, peer) => {
        if (link === 'bulk') vm.addBulkConnection(connection, preface, peer);
        else if (link === 'heartbeat') this.#heartbeat.accept(connection, preface, peer);
        else if (link === 'doctor')
          connection.close(); // `doctor --listen` answers; an agent has other things to do
        else this.#accept(connection, peer);
      },
      onRefused: (peer, reason) => refusals.tell(peer, reason),
    });
    this.#finished = new Promise((resolve) => {
      this.#finish = resolve;
    });
    this.tookOver = new Promise((resolve) => {
      this.#tellTookOver = resolve;
    });
    this.#machine = new SecondaryMachine({
      vmId: vmIdOf(options.vm),
      generation: generations.highest,
      node,
      failover: FAILOVER[witness.kind],
      timings: options.timings,
    });
    this.#driver = new Driver(
      this.#machine,
      (effect) => {
        trace?.effect(effect);
        takeOvers.effect(effect, this.epoch, this.#machine.takesOver);
        this.#perform(effect);
      },
      (event) => {
        trace?.event(event);
        takeOvers.event(event);
      },
    );
    this.#arbitration = arbitrationOf(witness, { node, generations, log }, (event) => this.#dispatch(event));
    vm.listen((event) => this.#dispatch(event));
  }

  /** The last committed epoch; also of an agent that has ended. */
  get epoch(): number {
    return this.#machine.epoch;
  }

  get port(): number {
    return this.#acceptor.port;
  }

  async run(): Promise<SecondaryOutcome> {
    this.#dispatch({ type: 'start' });
    const outcome = await this.#finished;
    this.#driver.stop();
    this.#arbitration?.close();
    this.#acceptor.close();
    this.#heartbeat.end();
    this.#link?.close();
    await this.#vm.detach();
    await this.#trace?.close();
    return outcome;
  }

  stop(): void {
    this.#dispatch({ type: 'command', command: 'stop' });
  }

  /**
   * After `tookOver`, for the primary that this process becomes: takes everything off the VM and frees its monitor. What stays is the port, at which older
   * primaries learn that the VM runs here (INVARIANT 4), and the watch for the end of its QEMU, both until run() ends; and until bequeath() the eye on the witness.
   */
  async handOn(): Promise<void> {
    await this.#vm.handOn();
    await this.#trace?.close();
  }

  /**
   * INVARIANT 4: whoever runs a VM tells the witness of a person's word, and sees there that it was superseded. After handOn() that is this agent's to do until its primary
   * takes it over by this call. Throws Error when this agent has ended, and perhaps its VM with it.
   */
  bequeath(): Inheritance {
    if (this.#ended) throw new Error(`the standby that took over has ended: ${this.#reason}`);
    this.#arbitration?.close();
    return { generations: this.#generations, undisputed: this.#machine.undisputed };
  }

  /**
   * Takes the VM over. `force`: a person says that the primary doesn't run, whatever the witness may say. Resolves when it runs; throws ControlError
   * `refused` with the reason when it may not.
   */
  async failover(force = false): Promise<string> {
    if (this.#state === 'RUNNING') return this.#reason;
    this.#dispatch({ type: 'command', command: force ? 'force-failover' : 'failover' });
    await this.#stateSettled();
    if (this.#machine.state !== 'RUNNING') throw new ControlError('refused', this.#reason);
    return this.#reason;
  }

  status(): SecondaryStatus {
    const lastCommittedAtMs = this.#machine.lastCommittedAtMs;
    return {
      vm: this.#options.vm,
      role: 'secondary',
      state: this.#state,
      reason: this.#reason,
      ifPrimaryDies: this.#consequence(),
      generation: this.#machine.generation,
      epoch: this.#machine.epoch,
      lastCheckpointAgeMs: lastCommittedAtMs === null ? null : Math.round(monotonicMs() - lastCommittedAtMs),
      link: this.#link && this.#linkStatus,
      agentPid: process.pid,
      qemuPid: this.#vm.pid,
      listen: formatHostPort({ host: this.#options.listen.host, port: this.port }),
      witness: this.#arbitration?.status() ?? noWitness(this.#options.witness.kind, this.#options.node),
      receivedBytes: this.#vm.receivedBytes,
      checkpoints: this.#vm.checkpoints,
      disks: this.#vm.disks.map(({ id, file, sizeBytes }) => ({ id, file, sizeBytes })),
      heartbeat: this.#heartbeat.stats(),
      flushMs: this.#vm.flushMs.summary(),
      loadMs: this.#vm.loadMs.summary(),
      histograms: { flush: this.#vm.flushMs.histogram(), load: this.#vm.loadMs.histogram() },
      scrub: {
        ms: this.#vm.scrubMs.summary(),
        checkedPages: this.#vm.scrubbedPages,
        found: this.#vm.scrubFindings,
      },
    };
  }

  #dispatch(body: EventBody): void {
    this.#driver.dispatch({ ...body, nowMs: monotonicMs() } as SecondaryEvent);
  }

  #accept(connection: PeerConnection, peer: string): void {
    if (this.#link) {
      // A primary that came back finds its old connection here until that has timed out; it tries again.
      this.#options.log.warn('a second primary was refused', { peer });
      connection.close();
      return;
    }
    let socket: Socket;
    try {
      this.#linkStatus = linkStatus(connection.security());
      socket = new Socket({ fd: connection.openSocket(), readable: true, writable: true });
    } catch (error) {
      // A want of descriptors or threads must not end a standby; the primary tries again.
      connection.close();
      this.#options.log.warn('a primary was refused', { peer, error: (error as Error).message });
      return;
    }
    this.#options.log.info('a primary connected', { peer, certificate: this.#linkStatus.peer });
    this.#peerHost = hostOfPeer(peer);
    this.#link = new PeerLink(socket, {
      onMessage: (message) => this.#dispatch({ type: 'message', message }),
      onLost: (reason) => {
        this.#link = null;
        this.#heartbeat.end();
        this.#dispatch({ type: 'peer-lost', reason });
      },
    });
    this.#dispatch({ type: 'peer-connected' });
  }

  #perform(effect: SecondaryEffect): void {
    switch (effect.type) {
      case 'send':
        this.#send(effect.message);
        break;
      case 'disconnect':
        this.#options.log.info('disconnected', { reason: effect.reason });
        this.#heartbeat.end();
        this.#link?.close();
        this.#link = null;
        break;
      case 'claim':
        this.#arbitration?.ask(effect.claim);
        break;
      case 'withdraw-claim':
        this.#arbitration?.withdraw();
        break;
      case 'read-record':
        this.#readRecord();
        break;
      case 'compare':
        this.#after(this.#generations.record(effect.generation), effect, (reason) => ({
          type: 'compared',
          difference: reason,
        }));
        break;
      case 'promote':
        this.#after(this.#mayRun(effect), effect, (reason) => ({
          type: 'not-promoted',
          reason,
        }));
        break;
      case 'settle-disks':
        this.#after(this.#mayClaim(), effect, (reason) => ({ type: 'not-settled', reason }));
        break;
      case 'skip-fence':
        this.#options.log.warn('not fenced', { by: 'failover --force' });
        this.#fenceSkipped.abort();
        break;
      case 'state':
        this.#setState(effect.state, effect.reason);
        break;
      case 'finished':
        this.#ended = true;
        this.#finish({ outcome: effect.outcome, reason: effect.reason });
        break;
      default:
        this.#vm.perform(effect);
    }
  }

  /** READY goes to the primary of a session that is open: one that ended while it was being opened must not be waited for, nor its host be fenced. */
  #send(message: Message): void {
    if (this.#link === null) return;
    this.#link.send(message);
    if (message.body.type !== 'ready') return;
    this.#heartbeat.expect(message.body.bulkToken, message.generation);
    this.#primaryHost = this.#peerHost;
  }

  /** INVARIANT 4: a generation is durable on this host before anything is answered in it, and before its VM runs. */
  #after(
    ready: Promise<void>,
    effect: Extract<SecondaryEffect, { type: 'compare' | 'settle-disks' | 'promote' }>,
    failed: (reason: string) => EventBody,
  ): void {
    ready.then(
      () => this.#vm.perform(effect),
      (error: Error) => this.#dispatch(failed(error.message)),
    );
  }

  #readRecord(): void {
    const arbitration = this.#arbitration as Arbitration; // the machine asks only where there is one
    arbitration.read().then(
      (record) => this.#dispatch({ type: 'record-read', record }),
      (error: Error) => this.#dispatch({ type: 'record-unread', reason: error.message }),
    );
  }

  /** Whoever wins a generation must be able to record it, or nobody runs: seen before it is claimed. */
  async #mayClaim(): Promise<void> {
    if (this.#arbitration !== null) await this.#generations.rewrite();
  }

  /** INVARIANT 4: where a fence is asked for, the VM runs only once the other host is known to be unable to; one that has handed it over has said so itself. */
  async #mayRun({ generation, handedOver }: SecondaryEffect & { type: 'promote' }): Promise<void> {
    const { fence: options, vm, log } = this.#options;
    await this.#takeOvers.timed('record generation', () => this.#generations.win(generation));
    const { signal } = this.#fenceSkipped;
    if (options === null || handedOver === true || signal.aborted) return;
    const target = { vm, host: options.host ?? this.#primaryHost, generation };
    const fenced = () => fence(options, target, log, signal);
    await this.#takeOvers.timed('fence', fenced).catch((error: Error) => {
      if (!signal.aborted) throw error;
    });
  }

  #setState(state: StateWord, reason: string): void {
    if (state !== this.#state || reason !== this.#reason) {
      this.#options.log.info(state, { reason });
      const { vm } = this.#options;
      const { generation, epoch } = this.#machine;
      tellSupervisor({ type: 'state', vm, role: 'secondary', state, reason, generation, epoch });
    }
    this.#state = state;
    this.#reason = reason;
    if (state === 'RUNNING') this.#tellTookOver();
    for (const resume of this.#waiting) resume();
    this.#waiting.clear();
  }

  /** Resolves at once unless a take-over is under way. */
  async #stateSettled(): Promise<void> {
    while (this.#state === 'TAKING-OVER') {
      await new Promise<void>((resolve) => this.#waiting.add(resolve));
    }
  }

  #succession(): string {
    const { witness, vm } = this.#options;
    const { epoch } = this.#machine;
    if (witness.kind === 'manual')
      return `this VM waits for \`colo-agent failover --force ${vm}\` at checkpoint ${epoch}`;
    if (this.#arbitration?.status().answers === false)
      return `this VM waits at checkpoint ${epoch} for the witness, which doesn't answer here`;
    return `this VM resumes at checkpoint ${epoch}`;
  }

  #consequence(): string {
    switch (this.#state) {
      case 'STANDBY':
        return this.#succession();
      case 'RUNNING':
        return 'this VM runs here';
      case 'TAKING-OVER':
        return `this VM is about to run at checkpoint ${this.#machine.epoch}, unless the primary goes on`;
      default:
        return this.#machine.epoch > 0
          ? `checkpoint ${this.#machine.epoch} is held here, and can't be resumed yet: ${this.#reason}`
          : 'the VM is lost: there is no checkpoint here that may be resumed';
    }
  }
}
