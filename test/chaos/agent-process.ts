/** One agent as its host's supervisor sees it: a process with a log and an exit code. Unlike TestAgent it may end at any moment, which is nobody's error here. */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { sendCommand } from '../../src/agent/control-client.ts';
import type { DrillReport } from '../../src/agent/drill-report.ts';
import type { AgentStatus } from '../../src/testbed/agents.ts';
import { Child, type ExitStatus } from '../../src/testbed/child.ts';
import { packageRoot } from '../../src/testbed/guest.ts';
import { monotonicMs } from '../../src/testbed/wait.ts';

export type Role = 'primary' | 'secondary';

export const EXIT_UNAVAILABLE = 69;
export const EXIT_FENCED = 75;

/** src/cli/outcome.ts, but for those of an end that somebody asked for: nobody does. A standby becomes a primary. */
const DOCUMENTED_EXITS: Record<Role, readonly number[]> = {
  primary: [EXIT_UNAVAILABLE, EXIT_FENCED, 78],
  secondary: [EXIT_UNAVAILABLE, EXIT_FENCED],
};

/** What no agent may ever write. */
const BUGS =
  /uncaught|unhandled|invalid transition|(?:Type|Reference|Range)Error|Assertion|^\s+at .+:\d+:\d+/im;

/** The one end of its own that a drill can bring: what is left of the VM can't be a standby. */
const HANDED_OVER = /the VM was handed over and has no standby/;

const STATUS_TIMEOUT_MS = 2000;

export class AgentProcess {
  readonly role: Role;
  readonly logPath: string;
  readonly exited: Promise<ExitStatus>;
  readonly startedMs = monotonicMs();
  readonly #child: Child;
  readonly #controlPath: string;
  /** A drill may have made its VM stand: for good, should it die now. */
  mayLeaveStanding = false;
  #drilling = false;

  private constructor(role: Role, child: Child, logPath: string, controlPath: string) {
    this.role = role;
    this.logPath = logPath;
    this.exited = child.exited;
    this.#child = child;
    this.#controlPath = controlPath;
  }

  /** Resolves when the process is there; `base` is the path of its log and its control socket, without their endings. */
  static async start(
    role: Role,
    args: string[],
    { prefix, env, base }: { prefix: string[]; env: NodeJS.ProcessEnv; base: string },
  ): Promise<AgentProcess> {
    const main = path.join(packageRoot, 'dist', 'cli', 'main.js');
    const [logPath, controlPath] = [`${base}.log`, `${base}.sock`];
    const command = [process.execPath, main, role, ...args, '--control', controlPath, '--log-level', 'info'];
    const child = await Child.start(command, {
      stderrPath: logPath,
      prefix,
      env: { ...process.env, ...env },
    });
    return new AgentProcess(role, child, logPath, controlPath);
  }

  get running(): boolean {
    return this.#child.running;
  }

  kill(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  /** Null: it doesn't answer (yet). */
  async status(): Promise<AgentStatus | null> {
    const answer = sendCommand(this.#controlPath, 'status').catch(() => null);
    const status = (await within(answer, STATUS_TIMEOUT_MS)) as AgentStatus | null;
    // After a drill that came to nothing the VM runs again, or this is a primary no more.
    if (!this.#drilling && status !== null && ['PROTECTED', 'STANDBY'].includes(status.state))
      this.mayLeaveStanding = false;
    return status;
  }

  /** Rejects with a ControlError: `refused` with the reason, or `no-agent` when it dies over it. */
  async drill(): Promise<DrillReport> {
    this.mayLeaveStanding = true;
    this.#drilling = true;
    try {
      return (await sendCommand(this.#controlPath, 'drill')) as DrillReport;
    } finally {
      this.#drilling = false;
    }
  }

  /** The witness names another host: this one's VM is none. Other things that are wrong here, a full disk say, have the same exit code. */
  get refused(): boolean {
    return /: (refused|stale-twin): by the witness it runs on /.test(this.log());
  }

  async end(): Promise<void> {
    await this.#child.stop();
  }

  log(): string {
    return readFileSync(this.logPath, 'utf8');
  }

  /** What its end and its log say against it. */
  faultOf({ code, signal }: ExitStatus): string | null {
    const name = path.basename(this.logPath);
    const bug = BUGS.exec(this.log())?.[0];
    if (bug !== undefined) return `${name} has an error that nobody caught: ${bug.trim()}`;
    if (code === 0 && HANDED_OVER.test(this.log())) return null;
    if (signal === 'SIGKILL' || (code !== null && DOCUMENTED_EXITS[this.role].includes(code))) return null;
    return `${name}: the agent ended by ${signal ?? `exit code ${code}`}`;
  }
}

/** Null when it takes longer. */
export async function within<T>(promise: Promise<T>, timeoutMs: number): Promise<T | null> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<null>((resolve) => {
    timer = setTimeout(() => resolve(null), timeoutMs);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
