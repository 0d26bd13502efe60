/** The agents of all VMs of this host, and the one socket by which they are commanded. */
import { chownSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { sendCommand } from '../agent/control-client.ts';
import { ControlError, type ControlRequest, ControlServer } from '../agent/control-server.ts';
import type { Log } from '../agent/log.ts';
import { SerialQueue } from '../agent/serial-queue.ts';
import { summaryOf, type TakeOverRecord } from '../agent/take-over-record.ts';
import { formatHttpAddress, type HttpAddress } from '../http/address.ts';
import { Endpoint } from '../http/endpoint.ts';
import { MetricsServer } from '../metrics/server.ts';
import { isForOthers } from '../web/address.ts';
import { WebServer } from '../web/server.ts';
import { type DaemonConfig, readConfig, type VmConfig } from './config.ts';
import { type DaemonEvent, EventStore } from './event-store.ts';
import { readingsOf } from './readings.ts';
import { ConfigError } from './toml.ts';
import type { VmOptions } from './vm-option.ts';
import { VmProcess, type VmSummary } from './vm-process.ts';

export interface DaemonOptions {
  configFile: string;
  controlPath: string;
  /** The program of the VMs' agents. */
  command: readonly string[];
  vmOptions: VmOptions;
  /** Where the metrics of all VMs are served, whatever the configuration says; null: as it says. */
  metrics: HttpAddress | null;
  /** The same of the page of all VMs. */
  web: HttpAddress | null;
  version: string;
  log: Log;
}

/** What a reload has changed, by VM. */
export interface ReloadReport {
  added: string[];
  changed: string[];
  removed: string[];
  unchanged: string[];
}

/** So that an answer stays small; a client asks again for more. */
const EVENTS_IN_ANSWER_MAX = 100;
const TAKE_OVERS_IN_ANSWER_MAX = 32;

export class Daemon {
  readonly #options: DaemonOptions;
  readonly #vms = new Map<string, VmProcess>();
  /** Out of the configuration, and not at their end yet. */
  readonly #leaving = new Map<string, Promise<void>>();
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

  private constructor(options: DaemonOptions, { stateFolder }: DaemonConfig) {
    this.#options = options;
    this.#events = new EventStore(stateFolder);
    const readings = () => readingsOf(this.#vms);
    const { version } = options;
    this.#metrics = new Endpoint((address) => MetricsServer.listen({ address, version, readings }));
    this.#web = new Endpoint((address) => this.#serveWeb(address));
  }

  list(): VmSummary[] {
    return [...this.#vms.values()].map((vm) => vm.summary());
  }

  /**
   * Does what the configuration says now, and leaves alone what it doesn't change. Of the VMs whose agents rest those that were refused are tried again, and
   * `vm`, also when a person has stopped it. Rejects with ControlError `configuration`, or `unknown-vm`, and nothing has changed then.
   */
  reload(vm: string | null): Promise<ReloadReport> {
    return this.#reloads.run(async () => {
      const { log } = this.#options;
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
    await Promise.all([...this.#leaving.values(), ...[...this.#vms.values()].map((vm) => vm.end())]);
    this.#metrics.close();
    this.#web.close();
    this.#control?.close();
  }

  /** The host's part first, of which something may fail: no VM has been touched then. */
  async #follow({ vms, controlGroup, metrics, web }: DaemonConfig): Promise<ReloadReport> {
    const group = controlGroup === null ? null : groupId(controlGroup);
    await this.#serve(this.#options.metrics ?? metrics, this.#options.web ?? web);
    if (group !== null) chownSync(this.#options.controlPath, -1, group);
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
      events: (after) => ({
        events: this.#events.latest(after, EVENTS_IN_ANSWER_MAX),
        takeOvers: this.#events.takeOvers(null, TAKE_OVERS_IN_ANSWER_MAX, after),
        lastId: this.#events.lastId,
      }),
      onFailure: (reason) => log.error('the agents could not be looked at for the web page', { reason }),
    });
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
      known.start(false);
      return 'unchanged';
    }
    known.replace(config);
    return 'changed';
  }

  #add(name: string, config: VmConfig): void {
    const { command, controlPath, log } = this.#options;
    const vm = new VmProcess(config, {
      command,
      controlPath: path.join(path.dirname(controlPath), 'vm', `${name}.sock`),
      log,
      onChange: (summary, epoch) => this.#record(summary, epoch),
      onTakeOver: (record) => this.#record(vm.summary(), record.epoch, record),
    });
    this.#vms.set(name, vm);
    // Its predecessor of the same name may still hold its QEMU.
    void (this.#leaving.get(name) ?? Promise.resolve()).then(() => {
      if (this.#vms.get(name) === vm && !this.#ending) vm.start(false);
    });
  }

  #remove(name: string, vm: VmProcess): void {
    this.#vms.delete(name);
    const left = vm.end().finally(() => this.#leaving.delete(name));
    this.#leaving.set(name, left);
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
      case 'reload':
        return this.reload(vm);
      case 'web':
        return this.#webLink();
      case 'events':
        return this.#eventsAfter(request.after, vm);
      case 'take-overs':
        return this.#events.takeOvers(vm, TAKE_OVERS_IN_ANSWER_MAX);
      case 'status':
      case 'failover':
      case 'drill':
      case 'stop':
        return this.#forward(command, vm, force);
      default:
        throw new ControlError(
          'unknown-command',
          `unknown command ${JSON.stringify(command)}; known are list, reload, events, take-overs, web, status, failover, drill and stop`,
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
    return sendCommand(vm.controlPath, command, { force });
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
