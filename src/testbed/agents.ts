/** colo-agent as a child process, and its control socket. */
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { sendCommand } from '../agent/control-client.ts';
import type { ControlCommand } from '../agent/control-server.ts';
import { Child, type ExitStatus, tail } from './child.ts';
import { pairedFolders } from './credentials.ts';
import { packageRoot } from './guest.ts';
import { waitFor } from './wait.ts';

/** What `status --json` shows; only what every test relies on has a type here. */
export interface AgentStatus {
  state: string;
  reason: string;
  epoch: number;
  [field: string]: unknown;
}

export class TestAgent {
  readonly controlPath: string;
  readonly exited: Promise<ExitStatus>;
  readonly #child: Child;
  readonly #directory: string;
  readonly #role: string;

  private constructor(role: string, child: Child, directory: string) {
    this.#role = role;
    this.#child = child;
    this.#directory = directory;
    this.exited = child.exited;
    this.controlPath = controlPathIn(directory);
  }

  /**
   * `args` are the command's own options, without --control; `prefix`: a command that sets the scene, see Child. With neither --tls nor
   * --insecure among them, the agents of this run trust each other. Resolves when the control socket is there.
   */
  static async start(
    role: 'primary' | 'secondary',
    args: string[],
    env: NodeJS.ProcessEnv = {},
    prefix: readonly string[] = [],
  ): Promise<TestAgent> {
    const directory = mkdtempSync(path.join(tmpdir(), 'colo-agent-'));
    const main = path.join(packageRoot, 'dist', 'cli', 'main.js');
    // What one test's agents have seen of a name is none of another's business.
    const state = args.includes('--state-dir') ? [] : ['--state-dir', path.join(directory, 'state')];
    const secured = args.includes('--insecure') || args.includes('--tls');
    const security = secured ? [] : ['--tls', pairedFolders()[role]];
    const own = [...state, ...security, '--control', controlPathIn(directory)];
    const command = [process.execPath, main, role, ...args, ...own];
    const child = await Child.start(command, {
      stderrPath: path.join(directory, 'stderr'),
      env: { ...process.env, ...env },
      prefix,
    });
    const agent = new TestAgent(role, child, directory);
    try {
      await waitFor(`control socket of the ${role} agent`, 120_000, () => {
        child.assertRunning();
        return existsSync(agent.controlPath);
      });
    } catch (error) {
      await agent.destroy();
      throw error;
    }
    return agent;
  }

  get pid(): number {
    return this.#child.pid;
  }

  get running(): boolean {
    return this.#child.running;
  }

  /** What the agent logged. */
  log(): string {
    return tail(path.join(this.#directory, 'stderr'), 16 << 20);
  }

  async status(): Promise<AgentStatus> {
    return (await this.command('status')) as AgentStatus;
  }

  /** One request, one line of answer. An error says what the agent logged: one that doesn't answer may just have ended. */
  async command(command: ControlCommand, force: string | null = null): Promise<unknown> {
    try {
      return await sendCommand(this.controlPath, command, { force });
    } catch (error) {
      (error as Error).message +=
        `\nlog of the ${this.#role} agent: ${tail(path.join(this.#directory, 'stderr'))}`;
      throw error;
    }
  }

  /** Resolves with the first status in which `state` is reached. Rejects with the last status, or with the agent's log if it ends. */
  async waitState(state: string, timeoutMs: number): Promise<AgentStatus> {
    return this.waitStatus(`state ${state}`, timeoutMs, (status) => status.state === state);
  }

  async waitStatus(
    what: string,
    timeoutMs: number,
    accept: (status: AgentStatus) => boolean,
  ): Promise<AgentStatus> {
    let last: AgentStatus | undefined;
    return waitFor(
      `${what} of the ${this.#role} agent`,
      timeoutMs,
      async () => {
        this.#child.assertRunning();
        last = await this.status();
        return accept(last) && last;
      },
      () => `; it says ${JSON.stringify(last)}\n${tail(path.join(this.#directory, 'stderr'))}`,
    );
  }

  kill(signal: NodeJS.Signals = 'SIGKILL'): void {
    this.#child.kill(signal);
  }

  async destroy(): Promise<void> {
    await this.#child.stop();
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

/** Short, because the path of a UNIX socket has at most 107 bytes. */
function controlPathIn(directory: string): string {
  return path.join(directory, 'control');
}
