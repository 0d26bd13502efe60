/** Child processes that never outlive the test: not an assertion that fails, not a test run that is killed. */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync, readFileSync } from 'node:fs';
import type { Readable, Writable } from 'node:stream';
import { promisify } from 'node:util';

export interface ExitStatus {
  code: number | null;
  signal: NodeJS.Signals | null;
}

export interface ChildOptions {
  /** Where standard error is kept; it is quoted in error messages. */
  stderrPath: string;
  /** Give the child's standard input and output to the caller; without it, both are /dev/null. */
  pipes?: boolean;
  /** User and group id to run as. */
  uid?: number;
  env?: NodeJS.ProcessEnv;
  /** A command that sets the scene and then becomes the program by exec, e.g. `ip netns exec NAME`. */
  prefix?: readonly string[];
}

/** The end of a file as it can stand in an error message. */
export function tail(path: string, bytes = 2000): string {
  const text = readFileSync(path, 'utf8');
  return text.length > bytes ? `...${text.slice(-bytes)}` : text;
}

export class Child {
  readonly pid: number;
  readonly exited: Promise<ExitStatus>;
  readonly #process: ChildProcess;
  readonly #name: string;
  readonly #stderrPath: string;

  private constructor(process: ChildProcess, name: string, pid: number, stderrPath: string) {
    this.#process = process;
    this.#name = name;
    this.#stderrPath = stderrPath;
    this.pid = pid;
    this.exited = once(process, 'exit').then(([code, signal]) => ({ code, signal }));
  }

  /** Rejects when the program can't be started at all. */
  static async start(command: string[], options: ChildOptions): Promise<Child> {
    // The death signal comes last in the chain of execs, because a change of user would clear it (prctl(2), PR_SET_PDEATHSIG).
    const wrapper = ['setpriv', '--pdeathsig', 'KILL'];
    if (options.uid !== undefined) {
      wrapper.push(`--reuid=${options.uid}`, `--regid=${options.uid}`, '--clear-groups');
    }
    const [file = '', ...args] = [...(options.prefix ?? []), ...wrapper, '--', ...command];
    const stderr = openSync(options.stderrPath, 'a');
    const pipe = options.pipes ? 'pipe' : 'ignore';
    const process = spawn(file, args, {
      stdio: [pipe, pipe, stderr],
      ...(options.env && { env: options.env }),
    });
    closeSync(stderr);
    await once(process, 'spawn');
    return new Child(process, command[0] ?? '', process.pid ?? 0, options.stderrPath);
  }

  get running(): boolean {
    return this.#process.exitCode === null && this.#process.signalCode === null;
  }

  get stdin(): Writable {
    if (!this.#process.stdin) throw new Error(`${this.#name} was started without pipes`);
    return this.#process.stdin;
  }

  get stdout(): Readable {
    if (!this.#process.stdout) throw new Error(`${this.#name} was started without pipes`);
    return this.#process.stdout;
  }

  /** Sends a signal; the effect of one that ends the process is seen at `exited`. */
  kill(signal: NodeJS.Signals = 'SIGKILL'): void {
    this.#process.kill(signal);
  }

  /** Kills the process if it still runs, and waits for its end. */
  async stop(): Promise<void> {
    this.kill();
    await this.exited;
  }

  /** Throws, with what the child wrote to standard error, when it no longer runs. */
  assertRunning(): void {
    if (this.running) return;
    const { exitCode, signalCode } = this.#process;
    throw new Error(
      `${this.#name} has ended (${signalCode ?? `status ${exitCode}`}): ${tail(this.#stderrPath)}`,
    );
  }
}

const executeFile = promisify(execFile);

/** Runs a command to its end and returns its standard output. Rejects, with its standard error in the message, when it fails. */
export async function run(file: string, ...args: string[]): Promise<string> {
  const { stdout } = await executeFile(file, args, { maxBuffer: 16 << 20 });
  return stdout;
}
