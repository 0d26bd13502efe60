/** The agents of all VMs of this host, and the one socket by which they are commanded. */
import { chownSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { sendCommand } from '../agent/control-client.ts';
import { ControlError, type ControlRequest, ControlServer } from '../agent/control-server.ts';
import type { Log } from '../agent/log.ts';
import { SerialQueue } from '../agent/serial-queue.ts';
import { assertSocketPath } from '../agent/socket-path.ts';
import { summaryOf, type TakeOverRecord } from '../agent/take-over-record.ts';
import { formatHttpAddress, type HttpAddress } from '../http/address.ts';
import { Endpoint } from '../http/endpoint.ts';
import { MetricsServer } from '../metrics/server.ts';
import { isForOthers } from '../web/address.ts';
import { WebServer } from '../web/server.ts';
import { type DaemonConfig, readConfig, type VmConfig } from './config.ts';
import { type DaemonEvent, EventStore } from './event-store.ts';
import { overviewOf, readingsOf } from './readings.ts';
import { ConfigError } from './toml.ts';
import type { VmOptions } from './vm-option.ts';
import { VmProcess, type VmSummary } from './vm-process.ts';

export interface DaemonOptions {
  configFile: string;
  controlPath: string;
  /** The program of the VMs' agents. */
  command: readonly string[];
  vmOptions: VmOptions;
  /** For a configuration that names none. */
  stateFolder: string;
  /** Where the metrics of all VMs are served, whatever the configuration says; null: as it says. */
  metrics: HttpAddress | null;
  /** The same of the page of all VMs. */
  web: HttpAddress | null;
  version: string;
  log: Log;
}

const AGENT_ANSWER_MS = 20_000;

/** What a reload has changed, by VM. */
export interface ReloadReport {
  added: string[];
  changed: string[];
  removed: string[];
  unchanged: string[];
}

/** So that an answer stays small; a client asks again for more. */
const EVENTS_IN_ANSWER_MAX = 100;

export class Daemon {
  readonly #options: DaemonOptions;
  readonly #vms = new Map<string, VmProcess>();
  /** Out of the configuration, and not at their end yet. */
  readonly #leaving = new Map<string, { vm: VmProcess; left: Promise<void> }>();
  readonly #events: EventStore;
  readonly #metrics: Endpoint<MetricsServer>;
  readonly #web: Endpoint<WebServer>;
  /** One after the other: a SIGHUP may come while the last one is followed. */
  readonly #reloads = new SerialQueue();
  #control: ControlServer | null = null;
  #ending = false;

  /** Throws ConfigError, HttpListenError, or ControlError `in-use` when another daemon runs, and leaves nothing behind. */
  static async start(options: DaemonOptions): Promise<Daemon> {
    const config = readConfig(options.configFile, options.vmOptions);
    assertSocket(options.controlPath, 'give `serve --control` another path');
    const daemon = new Daemon(options, config);
    const control = await ControlServer.answering(options.controlPath, (request) => daemon.#answer(request));
    daemon.#control = control;
    try {
      await daemon.#follow(config);
    } catch (error) {
      control.close();
      throw error;
    }
    return daemon;
  }

  private constructor(options: DaemonOptions, { stateFolder = options.stateFolder }: DaemonConfig) {
    this.#options = options;
    this.#events = new EventStore(stateFolder);
    const readings = () => readingsOf(this.#vms);
    const { version } = options;
    this.#metrics = new Endpoint((address) => MetricsServer.listen({ address, version, readings }));
    this.#web = new Endpoint((address) => this.#serveWeb(address));
  }

  /** Those that leave are there until they have left. */
  list(): VmSummary[] {
    const leaving = [...this.#leaving].filter(([name]) => !this.#vms.has(name)).map(([, { vm }]) => vm);
    return [...this.#vms.values(), ...leaving].map((vm) => vm.summary());
  }

  /**
   * Does what the configuration says now, and leaves alone what it doesn't change. Of the VMs whose agents rest those that were refused are tried again, and
   * `vm`, also when a person has stopped it. Rejects with ControlError `configuration`, or `unknown-vm`, and nothing has changed then.
   */
  reload(vm: string | null): Promise<ReloadReport> {
    return this.#reloads.run(async () => {
      const { log } = this.#options;
      if (this.#ending) throw new ControlError('not-running', 'the daemon is about to end');
      try {
        const report = await this.#load(vm);
        const { added, changed, removed } = report;
        log.info('the configuration was loaded', {
          added: added.join(' '),
          changed: changed.join(' '),
          removed: removed.join(' '),
        });
        return report;
      } catch (error) {
        const { message } = error as Error;
        log.error('the configuration was not loaded', { reason: message });
        if (error instanceof ControlError) throw error;
        throw new ControlError('configuration', `nothing was changed:\n${message}`);
      }
    });
  }

  async #load(vm: string | null): Promise<ReloadReport> {
    const config = readConfig(this.#options.configFile, this.#options.vmOptions);
    if (vm !== null && !config.vms.has(vm)) throw this.#unknown(vm, [...config.vms.keys()]);
    const report = await this.#follow(config);
    if (vm !== null) this.#vms.get(vm)?.start(true);
    return report;
  }

  /** Ends all agents in good order; their VMs go on. */
  async end(): Promise<void> {
    this.#ending = true;
    await this.#reloads.run(async () => {}); // one that is under way may listen anew
    const leaving = [...this.#leaving.values()].map(({ left }) => left);
    await Promise.all([...leaving, ...[...this.#vms.values()].map((vm) => vm.end())]);
    this.#metrics.close();
    this.#web.close();
    this.#control?.close();
  }

  /** The host's part first, of which something may fail: no VM has been touched then. */
  async #follow({ vms, controlGroup, metrics, web }: DaemonConfig): Promise<ReloadReport> {
    const { controlPath } = this.#options;
    for (const { name, place } of vms.values())
      assertSocket(
        agentSocket(controlPath, name),
        `a shorter name for the VM at ${place}, or another folder for \`serve --control\``,
      );
    giveSocketTo(controlGroup, controlPath);
    await this.#serve(this.#options.metrics ?? metrics, this.#options.web ?? web);
    return this.#apply(vms);
  }

  /** Both, or none of it. */
  async #serve(metrics: HttpAddress | null, web: HttpAddress | null): Promise<void> {
    const before = this.#metrics.address;
    await this.#metrics.moveTo(metrics);
    try {
      await this.#web.moveTo(web);
    } catch (error) {
      await this.#metrics.moveTo(before);
      throw error;
    }
  }

  #serveWeb(address: HttpAddress): Promise<WebServer> {
    const { version, log } = this.#options;
    if (isForOthers(address))
      log.warn(
        'the web page goes over the network as plain text: put a proxy with TLS before it (docs/web.md)',
        {
          web: formatHttpAddress(address),
        },
      );
    return WebServer.listen({
      address,
      version,
      readings: (answerMs) => readingsOf(this.#vms, answerMs),
      vms: () => this.list(),
      events: (after) => this.#happenedAfter(after),
      onFailure: (reason) => log.error('the agents could not be looked at for the web page', { reason }),
    });
  }

  /** The latest ones; and the take-overs, which are kept for longer. */
  #happenedAfter(after: number) {
    const latest = this.#events.latest(after, EVENTS_IN_ANSWER_MAX);
    const events = latest.map(({ takeOver: _, ...event }) => event);
    return { events, takeOvers: this.#events.takeOvers(null, after), lastId: this.#events.lastId };
  }

  #webLink(): { link: string } {
    if (this.#web.server === null)
      throw new ControlError(
        'not-running',
        'this daemon serves no web page: write `web = true` above all tables of agent.toml and `colo-agent reload`, or start it with `serve --web`',
      );
    return { link: this.#web.server.link() };
  }

  #apply(vms: DaemonConfig['vms']): ReloadReport {
    const report: ReloadReport = { added: [], changed: [], removed: [], unchanged: [] };
    if (this.#ending) return report;
    for (const [name, vm] of this.#vms) {
      if (vms.has(name)) continue;
      report.removed.push(name);
      this.#remove(name, vm);
    }
    for (const [name, config] of vms) report[this.#adopt(name, config)].push(name);
    return report;
  }

  #adopt(name: string, config: VmConfig): 'added' | 'changed' | 'unchanged' {
    const known = this.#vms.get(name);
    if (known === undefined) {
      this.#add(name, config);
      return 'added';
    }
    if (known.follows(config)) {
      // One that waits for its predecessor's end is started by that.
      if (!this.#leaving.has(name)) known.start(false);
      return 'unchanged';
    }
    known.replace(config);
    return 'changed';
  }

  #add(name: string, config: VmConfig): void {
    const { command, controlPath, log } = this.#options;
    const vm = new VmProcess(config, {
      command,
      controlPath: agentSocket(controlPath, name),
      log,
      roleBefore: this.#events.lastRole(name),
      onChange: (summary, epoch) => this.#record(summary, epoch),
      onTakeOver: (record) => this.#record(vm.summary(), record.epoch, record),
    });
    this.#vms.set(name, vm);
    // Its predecessor of the same name may still hold its QEMU.
    void (this.#leaving.get(name)?.left ?? Promise.resolve()).then(() => {
      if (this.#vms.get(name) === vm && !this.#ending) vm.start(false);
    });
  }

  #remove(name: string, vm: VmProcess): void {
    this.#vms.delete(name);
    // Its own predecessor may not have left yet.
    const before = this.#leaving.get(name)?.left;
    const left = Promise.all([before, vm.end()]).then(() => {
      if (this.#leaving.get(name)?.vm === vm) this.#leaving.delete(name);
    });
    this.#leaving.set(name, { vm, left });
  }

  #record(summary: VmSummary, epoch: number | null, takeOver?: TakeOverRecord): void {
    const { vm, role, state, generation } = summary;
    const reason = takeOver ? summaryOf(takeOver) : summary.reason;
    try {
      this.#events.add({ vm, role, state, reason, generation, epoch, ...(takeOver && { takeOver }) });
    } catch (error) {
      this.#options.log.error('an event could not be written', { reason: (error as Error).message });
    }
  }

  #answer(request: ControlRequest): unknown {
    const { command, vm, force } = request;
    switch (command) {
      case 'list':
        return vm === null ? this.list() : [this.#chosen(vm).summary()];
      case 'overview':
        return overviewOf(this.#vms);
      case 'config':
        return { file: this.#options.configFile };
      case 'reload':
        return this.reload(vm);
      case 'web':
        return this.#webLink();
      case 'events':
        return this.#eventsAfter(request.after, vm);
      case 'take-overs':
        return this.#events.takeOvers(vm);
      case 'status':
      case 'failover':
      case 'drill':
      case 'stop':
        return this.#forward(command, vm, force);
      default:
        throw new ControlError(
          'unknown-command',
          `unknown command ${JSON.stringify(command)}; known are list, overview, config, reload, events, take-overs, web, status, failover, drill and stop`,
        );
    }
  }

  #eventsAfter(after: number, vm: string | null): { events: DaemonEvent[]; lastId: number } {
    const events = this.#events.after(after, vm, EVENTS_IN_ANSWER_MAX);
    const cut = events.length === EVENTS_IN_ANSWER_MAX;
    return { events, lastId: cut ? (events.at(-1)?.id ?? after) : this.#events.lastId };
  }

  async #forward(
    command: 'status' | 'failover' | 'drill' | 'stop',
    name: string | null,
    force: string | null,
  ): Promise<unknown> {
    const vm = this.#chosen(name);
    if (command === 'stop' && vm.rest()) return "its agent doesn't run, and isn't started again";
    if (!vm.running) {
      const { vm: known, state, reason } = vm.summary();
      throw new ControlError('not-running', `the agent of VM ${known} doesn't run: ${state}: ${reason}`);
    }
    // Shorter than the client waits for us, who then hears that it is the agent that doesn't answer.
    return sendCommand(vm.controlPath, command, { force }, AGENT_ANSWER_MS);
  }

  #chosen(name: string | null): VmProcess {
    const names = [...this.#vms.keys()];
    const vm = this.#vms.get(name ?? (names.length === 1 ? (names[0] as string) : ''));
    if (vm !== undefined) return vm;
    if (name !== null) throw this.#unknown(name, names);
    throw new ControlError('which-vm', `name one of the VMs here: ${names.join(', ') || 'there is none'}`);
  }

  #unknown(name: string, known: string[]): ControlError {
    return new ControlError(
      'unknown-vm',
      `no VM \`${name}\` here; there ${known.length === 0 ? 'is none' : `are: ${known.join(', ')}`}`,
    );
  }
}

/** Throws ConfigError with what to do about a path that is too long. */
function assertSocket(socketPath: string, remedy: string): void {
  try {
    assertSocketPath(socketPath);
  } catch (error) {
    throw new ConfigError([`the control socket ${(error as Error).message}: ${remedy}`]);
  }
}

/** Null: to this process's own. Throws ConfigError. */
function giveSocketTo(controlGroup: string | null, socketPath: string): void {
  const group = controlGroup === null ? process.getegid?.() : groupId(controlGroup);
  try {
    chownSync(socketPath, -1, group ?? -1);
  } catch (error) {
    const { message } = error as Error;
    throw new ConfigError([
      `\`control-group\`: the control socket can't be given to ${controlGroup}: ${message}`,
    ]);
  }
}

/** Where the agent of a VM is reached directly, by the control socket of its daemon. */
export function agentSocket(daemonSocket: string, vm: string): string {
  return path.join(path.dirname(daemonSocket), 'vm', `${vm}.sock`);
}

/** Groups of this host's own file; whatever else knows groups gives their numbers. */
function groupId(group: string): number {
  if (/^\d+$/.test(group)) return Number(group);
  const line = readFileSync('/etc/group', 'utf8')
    .split('\n')
    .find((each) => each.startsWith(`${group}:`));
  const id = line?.split(':')[2];
  if (id === undefined)
    throw new ConfigError([
      `\`control-group\`: /etc/group has no group \`${group}\`: make it (groupadd), or give its number`,
    ]);
  return Number(id);
}
