/**
 * One of the two hosts, and what its supervisor does, on what it sees by itself, as docs/failover.md has it: for a VM that still runs its guest `primary` is started again;
 * after a fence or a death there is a new standby, a VM started with -S and `secondary`. A standby that takes over goes on as the primary without anybody's doing.
 */
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { QmpClient } from '../../src/qmp/client.ts';
import type { AgentStatus } from '../../src/testbed/agents.ts';
import type { TestNetwork } from '../../src/testbed/network.ts';
import { TestVm } from '../../src/testbed/vm.ts';
import { monotonicMs } from '../../src/testbed/wait.ts';
import { AgentProcess, EXIT_FENCED, EXIT_UNAVAILABLE, type Role, within } from './agent-process.ts';
import type { Journal } from './journal.ts';
import type { VmHost } from './plan.ts';
import type { Storage } from './storage.ts';
import type { WallClock } from './wall-clock.ts';

const STEP_MS = 200;
const BOOT_MS = 120_000;
const END_MS = 30_000;
const STANDS_ASKED = 5;
const DISK_MIB = 16;
const MEMORY_MIB = 128;
const SERVICES = 'colo.services=counter,announce,diskcheck colo.diskcheck=100,vda';

export interface HostOptions {
  name: VmHost;
  journal: Journal;
  network: TestNetwork;
  storage: Storage;
  clock: WallClock;
  /** Puts an agent on the host. */
  prefix: string[];
  /** Of either role. */
  args: string[];
  /** Where logs are kept. */
  folder: string;
  /** A VM with this tap device is about to start. */
  onTap(tap: string): void;
  /** The VM with this tap device has been handed over, and is the standby. */
  onStandsBy(tap: string): void;
}

/** A standby that waits for an answer, or tries again what has failed. */
const BLOCKED_FOR_NOW = /before the witness answers|tried again every/;
/** The primary's VM died before the witness was told of this standby: only a person can let it run. */
const NEVER_TOLD = /wasn't told that this standby holds a checkpoint/;

export class ChaosHost {
  readonly name: VmHost;
  role: Role = 'secondary';
  vm: TestVm | null = null;
  /** Of the VM that was started last. */
  tap = '';
  agent: AgentProcess | null = null;
  /** As its agent said last, and when it was asked; null: it doesn't say. */
  status: AgentStatus | null = null;
  statusMs = Number.NEGATIVE_INFINITY;
  /** The generation of the checkpoint that the present standby was seen to hold. */
  checkpointOf: number | null = null;
  /** Counts agents: one that is started again has no checkpoint. */
  incarnation = 0;
  /** When its processes last went on after a SIGSTOP. */
  wentOnMs = Number.NEGATIVE_INFINITY;
  /** Since the last quiet moment. */
  storageWasFull = false;
  /** How often a person had to let a VM go on that a drill had left standing. */
  letGoOn = 0;
  /** The agent died over a drill: the VM may stand for good. */
  #mayStand = false;
  readonly #options: HostOptions;
  /** Every agent that there was. */
  readonly #agents: AgentProcess[] = [];
  #vms = 0;
  #frozen = 0;
  #ended = false;
  #turn: Promise<unknown> = Promise.resolve();

  constructor(options: HostOptions) {
    this.name = options.name;
    this.#options = options;
  }

  get storage(): Storage {
    return this.#options.storage;
  }

  get clock(): WallClock {
    return this.#options.clock;
  }

  get runsGuest(): boolean {
    return this.role === 'primary' && this.vm?.running === true;
  }

  /** Whether what the standby here holds can still become the VM; null: it can't be told now. */
  get mayTakeOver(): boolean | null {
    if (this.#frozen > 0 || this.role === 'primary' || this.status === null) return null;
    const { state, reason } = this.status;
    if (state === 'SYNCING') return null;
    if (state === 'BLOCKED') return BLOCKED_FOR_NOW.test(reason) && !NEVER_TOLD.test(reason);
    return ['STANDBY', 'TAKING-OVER', 'RUNNING'].includes(state);
  }

  get logs(): string[] {
    return this.#agents.map(({ logPath }) => logPath);
  }

  /** Its supervisor stands still as well. */
  freeze(): void {
    this.#frozen++;
  }

  thaw(): void {
    this.#frozen--;
    this.wentOnMs = monotonicMs();
  }

  /** Until end(). */
  async supervise(): Promise<void> {
    while (!this.#ended) {
      if (this.#frozen === 0) await this.#exclusive(() => this.#step());
      await sleep(STEP_MS);
    }
  }

  /** Ends what is there and starts anew, by a person's hand: with a guest that boots, or as the standby of one. */
  async restart(role: Role, onCleared: () => Promise<void> = async () => {}): Promise<void> {
    await this.#exclusive(async () => {
      await this.#clear();
      await onCleared();
      this.storage.wipeDisk();
      if (role === 'secondary') return;
      this.vm = await this.#startVm(false);
      await this.vm.waitConsole('GUEST-READY', BOOT_MS);
      this.role = role;
    });
  }

  /** A VM that QEMU stopped because its disk was full goes on. */
  async resumeAfterFull(): Promise<void> {
    const { vm } = this;
    if (!vm?.running) return;
    try {
      if ((await runState(vm)) !== 'io-error') return;
      this.#note('the guest stood for want of space, and goes on');
      await monitor(vm, (qmp) => qmp.execute('cont'));
    } catch (error) {
      // It may be killed meanwhile.
      if ((await within(vm.exited, END_MS)) === null) throw error;
    }
  }

  /** Every log once more, also of those that were ended by hand. */
  async end(): Promise<void> {
    this.#ended = true;
    await this.#exclusive(() => this.#clear());
    for (const agent of this.#agents) {
      const fault = agent.faultOf(await agent.exited);
      if (fault !== null) this.#options.journal.violate(fault);
    }
  }

  async #exclusive(work: () => Promise<void>): Promise<void> {
    const mine = this.#turn.then(work);
    this.#turn = mine.catch(() => {});
    await mine;
  }

  async #step(): Promise<void> {
    try {
      if (this.#ended) return;
      if (this.agent !== null && !this.agent.running) await this.#afterAgent(this.agent);
      if (this.agent === null) await this.#startAgent();
      else await this.#look(this.agent);
    } catch (error) {
      // A fault can hit anything that is under way here. What doesn't come right in the end is found by the limit for PROTECTED.
      this.#note(`the supervisor tries again: ${(error as Error).message.split('\n')[0]}`);
    }
  }

  async #afterAgent(agent: AgentProcess): Promise<void> {
    const { vm } = this;
    const exit = await agent.exited;
    if (vm !== null && exit.code === EXIT_FENCED) await this.#expectGone(vm, 'is FENCED');
    if (vm !== null && exit.code === EXIT_UNAVAILABLE && this.wentOnMs < agent.startedMs)
      await this.#expectGone(vm, 'ended for want of its VM');
    // While QEMU can't be asked nothing is decided, and the supervisor comes back to it.
    const keeps = vm?.running === true && exit.code !== 0 && !agent.refused && (await this.#holdsGuest(vm));
    const lastWords = agent.log().trimEnd().split('\n').at(-1);
    this.#note(`${agent.role} ended (${exit.signal ?? exit.code}): ${lastWords}`);
    const fault = agent.faultOf(exit);
    if (fault !== null) this.#options.journal.violate(fault);
    this.agent = null;
    this.status = null;
    this.checkpointOf = null;
    if (!keeps) return this.#clear();
    this.role = 'primary';
    this.#mayStand ||= agent.mayLeaveStanding;
  }

  /** INVARIANT 4: who is fenced leaves no VM. And nobody leaves one that lives and doesn't stand still. */
  async #expectGone(vm: TestVm, why: string): Promise<void> {
    if ((await within(vm.exited, END_MS)) === null)
      this.#options.journal.violate(`${this.name}: the agent ${why}, and its VM lives`);
  }

  /** Or a standby's VM was let run by an agent that died before it could say so. */
  async #holdsGuest(vm: TestVm): Promise<boolean> {
    return this.role === 'primary' || ['running', 'io-error'].includes(await runState(vm));
  }

  async #startAgent(): Promise<void> {
    if (this.vm !== null && !this.vm.running) await this.#clear();
    if (this.vm === null) {
      this.role = 'secondary';
      this.vm = await this.#startVm(true);
    }
    const { prefix, args: own, folder, clock } = this.#options;
    const base = path.join(folder, `${this.name}-${++this.incarnation}-${this.role}`);
    const args = ['--qmp', this.vm.qmpPath, ...own];
    this.agent = await AgentProcess.start(this.role, args, { prefix, env: clock.environment, base });
    this.#agents.push(this.agent);
    this.#note(`${this.role} for ${this.vm.name}`);
  }

  async #look(agent: AgentProcess): Promise<void> {
    const askedMs = monotonicMs();
    const status = await agent.status();
    if (status !== null && status.state !== this.status?.state)
      this.#note(`${status['role']} says ${status.state}: ${status.reason}`);
    this.status = status;
    this.statusMs = askedMs;
    if (status === null) return;
    if (status.state === 'STANDBY') this.checkpointOf = Number(status['generation']);
    this.#followRole(status);
    if (this.#mayStand) await this.#letGoOn(status);
  }

  #followRole({ role, state, generation }: AgentStatus): void {
    const runs = role === 'primary' || state === 'RUNNING';
    if (this.role === 'secondary' && runs) {
      this.#note(`took over in generation ${generation}`);
      this.role = 'primary';
    } else if (this.role === 'primary' && !runs && state !== 'TAKING-OVER') {
      this.#note('handed its VM over, and is its standby');
      this.#options.onStandsBy(this.tap);
      this.role = 'secondary';
      this.#mayStand = false;
    }
  }

  /** A person's part in docs/failover.md: the agent was killed between HANDOVER and the answer, and its successor protects the VM, which runs nowhere else. */
  async #letGoOn({ state }: AgentStatus): Promise<void> {
    const { vm } = this;
    if (vm === null || state !== 'PROTECTED') return;
    this.#mayStand = false;
    for (let asked = 0; asked < STANDS_ASKED; asked++) {
      // A checkpoint's pause is shorter.
      if ((await runState(vm)) !== 'paused') return;
      await sleep(STEP_MS);
    }
    this.letGoOn++;
    this.#note('the VM stands since a drill, and a person lets it go on');
    await monitor(vm, (qmp) => qmp.execute('cont'));
  }

  async #startVm(paused: boolean): Promise<TestVm> {
    const { network, storage, journal, onTap, clock, folder } = this.#options;
    const { COLO_QEMU = 'qemu-system-x86_64' } = process.env;
    const tap = await network.addTap();
    onTap(tap);
    this.tap = tap;
    const vm = await TestVm.start({
      name: `${this.name}-${++this.#vms}`,
      qemu: clock.wrap(COLO_QEMU, path.join(folder, `${this.name}-qemu`)),
      guest: 'linux',
      memoryMiB: MEMORY_MIB,
      network,
      nics: [{ tap }],
      disks: [{ id: 'd0', sizeMiB: DISK_MIB, path: storage.diskPath }],
      paused,
      append: SERVICES,
    });
    void vm.exited.then(({ code, signal }) => {
      this.#note(`QEMU ${vm.name} ended (${signal ?? code})`);
      // Ended by `quit`, or killed by us or by an agent that was fenced; nothing else.
      if (code !== 0 && signal !== 'SIGKILL')
        journal.violate(`QEMU ${vm.name} ended by ${signal ?? `exit code ${code}`}: ${vm.stderr()}`);
    });
    this.#note(`QEMU ${vm.name} on ${tap}${paused ? ', paused' : ''}`);
    return vm;
  }

  async #clear(): Promise<void> {
    const { agent, vm } = this;
    this.agent = null;
    this.vm = null;
    this.status = null;
    this.checkpointOf = null;
    this.role = 'secondary';
    this.#mayStand = false;
    await agent?.end();
    await vm?.destroy();
  }

  #note(text: string): void {
    this.#options.journal.note(`${this.name}: ${text}`);
  }
}

const MONITOR_MS = 10_000;

async function runState(vm: TestVm): Promise<string> {
  return monitor(vm, async (qmp) => (await qmp.execute('query-status')).status);
}

/** Over the test's own monitor. Rejects when QEMU doesn't answer. */
async function monitor<T>(vm: TestVm, ask: (qmp: QmpClient) => Promise<T>): Promise<T> {
  const qmp = await QmpClient.connect(vm.testQmpPath);
  try {
    const answer = await within(ask(qmp), MONITOR_MS);
    if (answer === null) throw new Error(`QEMU ${vm.name} doesn't answer`);
    return answer;
  } finally {
    qmp.close();
  }
}
