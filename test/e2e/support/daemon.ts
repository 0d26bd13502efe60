/** `colo-agent serve` as a child process, with a configuration that a test writes. */
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { sendCommand } from '../../../src/agent/control-client.ts';
import type { Status } from '../../../src/agent/status.ts';
import type { ReloadReport } from '../../../src/daemon/daemon.ts';
import type { VmSummary } from '../../../src/daemon/vm-process.ts';
import { Child, type ExitStatus, tail } from '../../../src/testbed/child.ts';
import { pairedFolders } from '../../../src/testbed/credentials.ts';
import { waitFor } from '../../../src/testbed/wait.ts';
import { MAIN } from './cli.ts';

export class TestDaemon {
  readonly #side: 'primary' | 'secondary';
  readonly #defaults: readonly string[];
  readonly #folder: string;
  readonly #prefix: readonly string[];
  #child: Child | null = null;

  /** `side`: whose certificates it has; `defaults`: what stands in [defaults] beside them; `prefix`: runs it on one of hosts.ts. */
  constructor(
    side: 'primary' | 'secondary',
    { defaults = [], prefix = [] }: { defaults?: readonly string[]; prefix?: readonly string[] } = {},
  ) {
    this.#side = side;
    this.#defaults = defaults;
    this.#prefix = prefix;
    this.#folder = mkdtempSync(path.join(tmpdir(), 'colo-serve-'));
    mkdirSync(path.join(this.#folder, 'conf.d'));
  }

  get configFile(): string {
    return path.join(this.#folder, 'agent.toml');
  }

  /** A socket that serves the metrics of all VMs. */
  get metricsPath(): string {
    return path.join(this.#folder, 'metrics.sock');
  }

  get controlPath(): string {
    return path.join(this.#folder, 'control.sock');
  }

  vmFile(name: string): string {
    return path.join(this.#folder, 'conf.d', `${name}.toml`);
  }

  /** A VM's file; null takes it away. */
  writeVm(name: string, lines: readonly string[] | null): void {
    const file = this.vmFile(name);
    if (lines === null) rmSync(file);
    else writeFileSync(file, [`[vm.${name}]`, ...lines, ''].join('\n'));
  }

  async start(): Promise<void> {
    const host = [
      `state-dir = "${path.join(this.#folder, 'state')}"`,
      'log-level = "info"',
      `metrics = "unix:${this.metricsPath}"`,
      'web = "127.0.0.1:0"',
    ];
    const defaults = ['[defaults]', `tls = "${pairedFolders()[this.#side]}"`, ...this.#defaults];
    writeFileSync(this.configFile, [...host, ...defaults, ''].join('\n'));
    const command = [
      process.execPath,
      MAIN,
      'serve',
      '--config',
      this.configFile,
      '--control',
      this.controlPath,
    ];
    const child = await Child.start(command, {
      stderrPath: path.join(this.#folder, 'stderr'),
      prefix: this.#prefix,
    });
    this.#child = child;
    await waitFor('answer of the daemon', 60_000, async () => {
      child.assertRunning();
      return existsSync(this.controlPath) && (await this.list().catch(() => false));
    });
  }

  list(): Promise<VmSummary[]> {
    return sendCommand(this.controlPath, 'list') as Promise<VmSummary[]>;
  }

  async vm(name: string): Promise<VmSummary> {
    const found = (await this.list()).find(({ vm }) => vm === name);
    if (found === undefined) throw new Error(`the daemon has no VM ${name}`);
    return found;
  }

  status(vm: string): Promise<Status> {
    return sendCommand(this.controlPath, 'status', { vm }) as Promise<Status>;
  }

  reload(): Promise<ReloadReport> {
    return sendCommand(this.controlPath, 'reload') as Promise<ReloadReport>;
  }

  failover(vm: string): Promise<unknown> {
    return sendCommand(this.controlPath, 'failover', { vm, force: vm });
  }

  drill(vm: string): Promise<unknown> {
    return sendCommand(this.controlPath, 'drill', { vm });
  }

  async waitVm(name: string, what: string, accept: (vm: VmSummary) => boolean): Promise<VmSummary> {
    let last: VmSummary | undefined;
    return waitFor(
      `${what} of VM ${name}`,
      120_000,
      async () => {
        this.#child?.assertRunning();
        last = await this.vm(name);
        return accept(last) && last;
      },
      () => `; it is ${JSON.stringify(last)}\n${tail(path.join(this.#folder, 'stderr'), 6000)}`,
    );
  }

  waitState(name: string, state: string): Promise<VmSummary> {
    return this.waitVm(name, state, (vm) => vm.state === state);
  }

  /** SIGSTOP, SIGCONT: the daemon alone, not the agents. */
  signal(signal: NodeJS.Signals): void {
    (this.#child as Child).kill(signal);
  }

  /** Sends the signal and waits for the end of the daemon itself. */
  async end(signal: NodeJS.Signals): Promise<ExitStatus> {
    const child = this.#child as Child;
    child.kill(signal);
    return child.exited;
  }

  async destroy(): Promise<void> {
    await this.#child?.stop();
    rmSync(this.#folder, { recursive: true, force: true });
  }
}

export function runs(pid: number | null): boolean {
  return pid !== null && existsSync(`/proc/${pid}`);
}
