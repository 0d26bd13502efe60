/** The primary's shell: one protected VM, its QMP connection, the native parts and the link to the standby, run as the machine says. */

import { randomBytes } from 'node:crypto';
import type { TlsCredentials } from '../native/binding.ts';
import type { PrimaryEffect, PrimaryEvent, StateWord, Timings } from '../protocol/machine.ts';
import type { Mode } from '../protocol/messages.ts';
import { PrimaryMachine } from '../protocol/primary.ts';
import { vmIdOf } from '../protocol/vm-id.ts';
import type { AcceptedExceptions } from '../vm/preflight.ts';
import { Driver, monotonicMs } from './driver.ts';
import type { LinkStatus } from './link-security.ts';
import type { Log } from './log.ts';
import { connectPeer, type HostPort } from './peer-address.ts';
import type { PeerLink } from './peer-link.ts';
import { PrimaryMeters } from './primary-meters.ts';
import { PrimaryTrace } from './primary-trace.ts';
import { attachPrimary, type PrimaryVm } from './primary-vm.ts';
import type { PrimaryStatus } from './status.ts';

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
  syncBytesPerSecond: number;
  gateLimitBytes: number;
  diskBufferBytes: number;
  exceptions: AcceptedExceptions;
  /** The file for a breakdown of each checkpoint, or null. */
  traceFile: string | null;
  log: Log;
}

export interface AgentOutcome {
  outcome: 'stopped' | 'guest-shutdown' | 'vm-lost' | 'fenced';
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
  readonly #finished: Promise<AgentOutcome>;
  #finish: (outcome: AgentOutcome) => void = () => {};
  #link: PeerLink | null = null;
  #linkStatus: LinkStatus | null = null;
  #cancelConnect: (() => void) | null = null;
  #state: StateWord = 'STARTING';
  #reason = '';

  /** Attaches to the VM without stopping it. Throws (PreflightError, QmpError, NativeError) when it can't be protected; it is unharmed then. */
  static async attach(options: PrimaryAgentOptions): Promise<PrimaryAgent> {
    const { traceFile, vm: name, log } = options;
    const trace = traceFile === null ? null : await PrimaryTrace.open(traceFile, name, log);
    try {
      return new PrimaryAgent(options, await attachPrimary(options), trace);
    } catch (error) {
      await trace?.close();
      throw error;
    }
  }

  private constructor(options: PrimaryAgentOptions, vm: PrimaryVm, trace: PrimaryTrace | null) {
    this.#options = options;
    this.#vm = vm;
    this.#trace = trace;
    this.#meters = new PrimaryMeters(trace);
    this.#finished = new Promise((resolve) => {
      this.#finish = resolve;
    });
    this.#machine = new PrimaryMachine({
      vmId: vmIdOf(options.vm),
      mode: options.mode,
      connections: options.connections,
      description: vm.description,
      copiesDisks: vm.disks.any,
      generation: vm.disks.generation,
      timings: options.timings,
      foundClosedGate: vm.foundClosedGate,
    });
    this.#driver = new Driver(
      this.#machine,
      (effect) => {
        trace?.effect(effect);
        this.#perform(effect);
      },
      (event) => {
        trace?.event(event);
        this.#meters.observe(event);
      },
    );
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
    this.#driver.stop();
    this.#link?.close();
    this.#cancelConnect?.();
    await this.#vm.detach();
    await this.#trace?.close();
    return outcome;
  }

  stop(): void {
    this.#dispatch({ type: 'command', command: 'stop' });
  }

  status(): PrimaryStatus {
    const { heldFrames, heldBytes, droppedFrames } = this.#vm.heldOutput();
    const tracker = this.#vm.tracker;
    return {
      vm: this.#options.vm,
      role: 'primary',
      state: this.#state,
      reason: this.#reason,
      ifPrimaryDies: consequence(this.#state, this.#machine.epoch),
      generation: this.#machine.generation,
      epoch: this.#machine.epoch,
      lastCheckpointAgeMs: age(this.#machine.lastCommittedAtMs),
      link: this.#link && this.#linkStatus,
      agentPid: process.pid,
      qemuPid: this.#vm.pid,
      mode: this.#options.mode,
      peer: `${this.#options.peer.host}:${this.#options.peer.port}`,
      ...this.#meters.status(),
      heldFrames,
      heldBytes,
      droppedFrames,
      tracker: tracker.kind,
      trackerReason: tracker.reason,
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
      case 'state':
        this.#setState(effect.state, effect.reason);
        break;
      case 'finished':
        this.#finish({ outcome: effect.outcome, reason: effect.reason });
        break;
      default:
        this.#vm.perform(effect, this.#options, this.#machine.generation, this.#meters);
    }
  }

  #connect(): void {
    let cancelled = false;
    this.#cancelConnect = () => {
      cancelled = true;
    };
    // INVARIANT 4: HELLO tells no generation that isn't recorded beside the disks.
    this.#vm.disks.record(this.#machine.generation).then(
      () => !cancelled && this.#connectPeer(),
      (error: Error) => !cancelled && this.#dispatch({ type: 'peer-lost', reason: error.message }),
    );
  }

  #connectPeer(): void {
    this.#cancelConnect = connectPeer(this.#options.peer, this.#options.credentials, {
      onConnected: (link, security) => {
        this.#link = link;
        this.#linkStatus = security;
        this.#dispatch({ type: 'peer-connected', lineage: randomBytes(16).toString('hex') });
      },
      onMessage: (message) => this.#dispatch({ type: 'message', message }),
      onLost: (reason) => {
        this.#link = null;
        this.#dispatch({ type: 'peer-lost', reason });
      },
    });
  }

  #setState(state: StateWord, reason: string): void {
    if (state !== this.#state || reason !== this.#reason) {
      const level = state === 'EXPOSED' || state === 'BLOCKED' || state === 'FENCED' ? 'warn' : 'info';
      this.#options.log[level](state, { reason });
    }
    this.#state = state;
    this.#reason = reason;
    if (state === 'SYNCING' || state === 'EXPOSED') this.#meters.sessionChanged();
  }
}

function age(atMs: number | null): number | null {
  return atMs === null ? null : Math.round(monotonicMs() - atMs);
}

function consequence(state: StateWord, epoch: number): string {
  if (state === 'PROTECTED')
    return `the standby resumes at checkpoint ${epoch} or a newer one; open connections go on`;
  return 'the VM is lost: no standby holds a checkpoint that may be resumed';
}
