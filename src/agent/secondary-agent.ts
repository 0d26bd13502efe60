/** The secondary's shell: one standby VM, the port that its primary connects to, run as the machine says. */
import { Socket } from 'node:net';
import { type Acceptor, native, type PeerConnection, type TlsCredentials } from '../native/binding.ts';
import type { SecondaryEffect, SecondaryEvent, StateWord, Timings } from '../protocol/machine.ts';
import { SecondaryMachine } from '../protocol/secondary.ts';
import { vmIdOf } from '../protocol/vm-id.ts';
import { ControlError } from './control-server.ts';
import { Driver, monotonicMs } from './driver.ts';
import { type LinkStatus, linkStatus } from './link-security.ts';
import type { Log } from './log.ts';
import { formatHostPort, type HostPort } from './peer-address.ts';
import { PeerLink } from './peer-link.ts';
import { SecondaryTrace } from './secondary-trace.ts';
import { attachStandby, type StandbyVm } from './standby-vm.ts';
import type { SecondaryStatus } from './status.ts';

export interface SecondaryAgentOptions {
  vm: string;
  qmpPath: string;
  listen: HostPort;
  /** Null: plain text. */
  credentials: TlsCredentials | null;
  autoFailover: boolean;
  overwriteDisks: readonly string[];
  timings: Timings;
  /** The file for a breakdown of each checkpoint and of a failover, or null. */
  traceFile: string | null;
  log: Log;
}

export interface SecondaryOutcome {
  outcome: 'stopped' | 'guest-shutdown' | 'vm-lost';
  reason: string;
}

type EventBody = SecondaryEvent extends infer E
  ? E extends SecondaryEvent
    ? Omit<E, 'nowMs'>
    : never
  : never;

export class SecondaryAgent {
  readonly #options: SecondaryAgentOptions;
  readonly #vm: StandbyVm;
  readonly #trace: SecondaryTrace | null;
  readonly #acceptor: Acceptor;
  readonly #machine: SecondaryMachine;
  readonly #driver: Driver<SecondaryEvent, SecondaryEffect>;
  readonly #finished: Promise<SecondaryOutcome>;
  #finish: (outcome: SecondaryOutcome) => void = () => {};
  #link: PeerLink | null = null;
  #linkStatus: LinkStatus | null = null;
  #state: StateWord = 'STARTING';
  #reason = '';
  #onChange: () => void = () => {};

  /** Attaches to a VM started with -S and listens. Throws NotAStandbyError, QmpError or NativeError. */
  static async attach(options: SecondaryAgentOptions): Promise<SecondaryAgent> {
    const { traceFile, vm: name, log } = options;
    const trace = traceFile === null ? null : await SecondaryTrace.open(traceFile, name, log);
    let vm: StandbyVm | null = null;
    try {
      vm = await attachStandby(options, trace);
      return new SecondaryAgent(options, vm, trace);
    } catch (error) {
      await vm?.detach();
      await trace?.close();
      throw error;
    }
  }

  private constructor(options: SecondaryAgentOptions, vm: StandbyVm, trace: SecondaryTrace | null) {
    this.#options = options;
    this.#vm = vm;
    this.#trace = trace;
    this.#acceptor = new native.Acceptor({
      host: options.listen.host,
      port: options.listen.port,
      credentials: options.credentials,
      onAccepted: (link, connection, preface, peer) => {
        if (link === 'bulk') vm.addBulkConnection(connection, preface, peer);
        else this.#accept(connection, peer);
      },
      onRefused: (peer, reason) => options.log.warn('a connection was refused', { peer, reason }),
    });
    this.#finished = new Promise((resolve) => {
      this.#finish = resolve;
    });
    this.#machine = new SecondaryMachine({
      vmId: vmIdOf(options.vm),
      generation: 0,
      autoFailover: options.autoFailover,
      timings: options.timings,
    });
    this.#driver = new Driver(
      this.#machine,
      (effect) => {
        trace?.effect(effect);
        this.#perform(effect);
      },
      (event) => trace?.event(event),
    );
    vm.listen((event) => this.#dispatch(event));
  }

  get port(): number {
    return this.#acceptor.port;
  }

  async run(): Promise<SecondaryOutcome> {
    this.#dispatch({ type: 'start' });
    const outcome = await this.#finished;
    this.#driver.stop();
    this.#acceptor.close();
    this.#link?.close();
    await this.#vm.detach();
    await this.#trace?.close();
    return outcome;
  }

  stop(): void {
    this.#dispatch({ type: 'command', command: 'stop' });
  }

  /** Takes the VM over. Resolves when it runs; throws ControlError `refused` with the reason when it may not. */
  async failover(): Promise<string> {
    if (this.#state === 'RUNNING') return this.#reason;
    this.#dispatch({ type: 'command', command: 'failover' });
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
      autoFailover: this.#options.autoFailover,
      receivedBytes: this.#vm.receivedBytes,
      checkpoints: this.#vm.checkpoints,
      disks: this.#vm.disks.map(({ id, file, sizeBytes }) => ({ id, file, sizeBytes })),
      flushMs: this.#vm.flushMs.summary(),
      loadMs: this.#vm.loadMs.summary(),
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
    this.#linkStatus = linkStatus(connection.security());
    const socket = new Socket({ fd: connection.openSocket(), readable: true, writable: true });
    this.#options.log.info('a primary connected', { peer, certificate: this.#linkStatus.peer });
    this.#link = new PeerLink(socket, {
      onMessage: (message) => this.#dispatch({ type: 'message', message }),
      onLost: (reason) => {
        this.#link = null;
        this.#dispatch({ type: 'peer-lost', reason });
      },
    });
    this.#dispatch({ type: 'peer-connected' });
  }

  #perform(effect: SecondaryEffect): void {
    switch (effect.type) {
      case 'send':
        this.#link?.send(effect.message);
        break;
      case 'disconnect':
        this.#options.log.info('disconnected', { reason: effect.reason });
        this.#link?.close();
        this.#link = null;
        break;
      case 'state':
        this.#setState(effect.state, effect.reason);
        break;
      case 'finished':
        this.#finish({ outcome: effect.outcome, reason: effect.reason });
        break;
      default:
        this.#vm.perform(effect);
    }
  }

  #setState(state: StateWord, reason: string): void {
    if (state !== this.#state || reason !== this.#reason) this.#options.log.info(state, { reason });
    this.#state = state;
    this.#reason = reason;
    this.#onChange();
  }

  /** Resolves at once unless a take-over is under way. */
  async #stateSettled(): Promise<void> {
    while (this.#state === 'TAKING-OVER') {
      await new Promise<void>((resolve) => {
        this.#onChange = resolve;
      });
    }
  }

  #consequence(): string {
    switch (this.#state) {
      case 'STANDBY':
        return this.#options.autoFailover
          ? `this VM resumes at checkpoint ${this.#machine.epoch}`
          : `this VM waits for \`colo-agent failover\` at checkpoint ${this.#machine.epoch}`;
      case 'RUNNING':
      case 'TAKING-OVER':
        return 'this VM runs here';
      default:
        return 'the VM is lost: there is no checkpoint here that may be resumed';
    }
  }
}
