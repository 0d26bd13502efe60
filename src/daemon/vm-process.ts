/**
 * One VM's agent: a process of its own, so that VMs neither fail together nor wait for each other in a pause. When the daemon ends, however that happens,
 * the channel to it ends, and with it the agent, in good order.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import type { Log } from '../agent/log.ts';
import type { AgentMessage, EndMessage, StateMessage } from '../agent/supervisor-channel.ts';
import type { TakeOverRecord } from '../agent/take-over-record.ts';
import type { VmWord } from '../metrics/readings.ts';
import type { VmConfig } from './config.ts';
import {
  type ProcessEffect,
  type ProcessEvent,
  type ProcessExit,
  ProcessMachine,
  type ProcessPhase,
} from './restart.ts';
import { RoleError, roleOf } from './role.ts';
import type { Role } from './vm-option.ts';

/** As `colo-agent list` shows it. Scripts rely on these names. */
export interface VmSummary {
  vm: string;
  role: 'primary' | 'secondary' | null;
  /** The agent's own word while it runs; else STARTING, WAITING (for its next start, or for its QEMU), REFUSED, STOPPED or ENDING. */
  state: VmWord;
  reason: string;
  generation: number | null;
  agentPid: number | null;
  restarts: number;
}

export interface VmProcessOptions {
  /** The program: `colo-agent` without its command. */
  command: readonly string[];
  controlPath: string;
  log: Log;
  /** What its agent was the last time, as far as anybody knows: its VM may stand as it left it. */
  roleBefore: VmSummary['role'];
  onChange(summary: VmSummary, epoch: number | null): void;
  onTakeOver(record: TakeOverRecord): void;
}

/** By phase, while there is no process. */
const RESTING_WORDS: Record<ProcessPhase, VmWord> = {
  running: 'WAITING',
  waiting: 'WAITING',
  refused: 'REFUSED',
  stopped: 'STOPPED',
  ending: 'ENDING',
  ended: 'STARTING',
};

const EX_UNAVAILABLE = 69;
const EX_CONFIG = 78;

export class VmProcess {
  readonly #options: VmProcessOptions;
  readonly #machine = new ProcessMachine();
  #config: VmConfig;
  /** Takes the place of #config when the process has ended. */
  #next: VmConfig | null = null;
  #child: ChildProcess | null = null;
  #timer: NodeJS.Timeout | undefined;
  #role: Role | null = null;
  #state: StateMessage | null = null;
  #end: EndMessage | null = null;
  #ended: () => void = () => {};
  #told = '';
  #runs = 0;
  /** Somebody wants it to be there, though it has said that it ends. */
  #startOnceEnded = false;

  constructor(config: VmConfig, options: VmProcessOptions) {
    this.#config = config;
    this.#options = options;
    this.#role = options.roleBefore === 'secondary' ? 'standby' : options.roleBefore;
  }

  get controlPath(): string {
    return this.#options.controlPath;
  }

  /** Whether it has nothing to change for `config`. */
  follows(config: VmConfig): boolean {
    return identity(this.#next ?? this.#config) === identity(config);
  }

  /** Unless it runs. `evenStopped`: also when a person has stopped it. */
  start(evenStopped: boolean): void {
    if (evenStopped && this.#leaves) this.#startOnceEnded = true;
    this.#dispatch({ type: 'start', nowMs: performance.now(), evenStopped });
  }

  /** A person wants it stopped, and it doesn't run: it isn't started again by itself. False when there is a process to be asked. */
  rest(): boolean {
    this.#dispatch({ type: 'rest' });
    return this.#machine.phase === 'stopped';
  }

  /** It has said that it ends, and hasn't yet. */
  get #leaves(): boolean {
    return this.#machine.phase === 'running' && this.#state?.state === 'STOPPED';
  }

  /** Ends the process that there is, and starts another by `config`; not where a person has stopped it. */
  replace(config: VmConfig): void {
    const { phase } = this.#machine;
    if (phase === 'ended' || phase === 'stopped') {
      this.#config = config; // it has not begun yet, or a person has to say that it may
      return;
    }
    this.#next = config;
    if (!this.#leaves) this.#dispatch({ type: 'end' });
  }

  /** Resolves when its process has ended, in good order: the VM goes on. */
  end(): Promise<void> {
    this.#next = null;
    const ended = new Promise<void>((resolve) => {
      this.#ended = resolve;
    });
    if (this.#machine.phase === 'ended') this.#ended();
    else this.#dispatch({ type: 'end' });
    return ended;
  }

  /** Whether its agent answers, or soon will. */
  get running(): boolean {
    return this.#machine.phase === 'running' && this.#state !== null;
  }

  summary(): VmSummary {
    const { phase, reason } = this.#machine;
    // Each look at a QEMU that isn't there is no news; the first one is.
    const runs = phase === 'running' && (this.#child !== null || !this.#machine.falters);
    const state = this.#state;
    const said = this.#leaves ? 'ENDING' : (state?.state ?? 'STARTING');
    return {
      vm: this.#config.name,
      role: state?.role ?? (this.#role === 'standby' ? 'secondary' : this.#role),
      state: runs ? said : RESTING_WORDS[phase],
      reason: runs ? (state?.reason ?? 'its agent begins') : reason,
      generation: state?.generation ?? null,
      agentPid: this.#child?.pid ?? null,
      restarts: Math.max(0, this.#runs - 1),
    };
  }

  #dispatch(event: ProcessEvent): void {
    for (const effect of this.#machine.step(event)) this.#perform(effect);
    this.#tell();
  }

  #perform(effect: ProcessEffect): void {
    clearTimeout(this.#timer);
    switch (effect.type) {
      case 'spawn':
        void this.#spawn();
        break;
      case 'wake':
        this.#timer = setTimeout(
          () => this.#dispatch({ type: 'due', nowMs: performance.now() }),
          effect.delayMs,
        );
        break;
      case 'terminate':
        this.#child?.kill('SIGTERM'); // without one it is about to be spawned, which is left then
        break;
      case 'ended':
        this.#afterEnd();
        break;
    }
  }

  #afterEnd(): void {
    const next = this.#next;
    if (next === null) {
      this.#ended();
      return;
    }
    this.#next = null;
    this.#config = next;
    queueMicrotask(() => this.start(false));
  }

  async #spawn(): Promise<void> {
    this.#state = null;
    this.#end = null;
    let role: Role;
    try {
      role = await roleOf(this.#config, this.#role);
    } catch (error) {
      const lasting = error instanceof RoleError && error.lasting;
      this.#exited(lasting ? EX_CONFIG : EX_UNAVAILABLE, (error as Error).message);
      return;
    }
    if (this.#machine.phase === 'ending') {
      this.#exited(0, 'it was told to end before it began');
      return;
    }
    this.#role = role;
    try {
      this.#run(role);
    } catch (error) {
      this.#exited(null, `its agent can't be started: ${(error as Error).message}`);
    }
  }

  #run(role: Role): void {
    const [file = '', ...args] = this.#options.command;
    const command = role === 'primary' ? 'primary' : 'secondary';
    const own = [...(this.#config.args[role] ?? []), `--control=${this.controlPath}`];
    const child = spawn(file, [...args, command, ...own], { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
    this.#child = child;
    this.#runs++;
    this.#tell();
    child.on('error', (error) => {
      if (child.pid === undefined) this.#exited(null, error.message);
    });
    child.on('message', (message) => this.#hear(message as AgentMessage));
    // `close` comes after everything that it had to say.
    child.on('close', (code, signal) => {
      if (child.pid === undefined) return;
      this.#exited(code, signal === null ? `it ended with code ${code}` : `it was ended by ${signal}`);
    });
  }

  #hear(message: AgentMessage): void {
    if (message.type === 'take-over') {
      this.#options.onTakeOver(message.record);
      return;
    }
    if (message.type === 'end') this.#end = message;
    else {
      this.#state = message;
      this.#role = message.role === 'primary' ? 'primary' : 'standby';
    }
    this.#tell();
  }

  #exited(code: number | null, reason: string): void {
    const ran = this.#child !== null;
    this.#child = null;
    const exit: ProcessExit = {
      code,
      outcome: this.#end?.outcome ?? null,
      reason: this.#end?.reason ?? reason,
    };
    this.#log(exit, ran);
    this.#dispatch({ type: 'ended', nowMs: performance.now(), exit });
    this.#followUp();
  }

  /** Each look at a QEMU that isn't there yet is no news. */
  #log({ code, outcome, reason }: ProcessExit, ran: boolean): void {
    const vm = this.#config.name;
    if (ran) this.#options.log.info('an agent has ended', { vm, code, outcome, reason });
    else if (reason !== this.#machine.reason) this.#options.log.info('no agent is started', { vm, reason });
  }

  /** What was wanted while it left by itself. */
  #followUp(): void {
    if (this.#machine.phase !== 'ended' && this.#next !== null) {
      this.#config = this.#next;
      this.#next = null;
    }
    if (!this.#startOnceEnded) return;
    this.#startOnceEnded = false;
    this.start(true);
  }

  #tell(): void {
    const summary = this.summary();
    const { state, reason, role, generation, agentPid } = summary;
    const told = JSON.stringify([state, reason, role, generation, agentPid]);
    if (told === this.#told) return;
    this.#told = told;
    this.#options.onChange(summary, this.#state?.epoch ?? null);
  }
}

function identity({ role, source, args }: VmConfig): string {
  return JSON.stringify([role, source, args]);
}
