/** The command that makes sure that the other host can do no more harm, before a take-over lets its VM run here. */
import { spawn } from 'node:child_process';
import type { Log } from './log.ts';

export interface FenceOptions {
  /** The program; no shell is involved. */
  command: string;
  timeoutMs: number;
  /** What names the primary's host to it; null: the address that the primary came from. */
  host: string | null;
}

export interface FenceTarget {
  vm: string;
  /** Whose VM is to be stopped. */
  host: string;
  /** The generation in which the VM is about to run here. */
  generation: number;
}

export class FenceError extends Error {
  override readonly name = 'FenceError';
}

/** What of the command's output goes into an error. */
const OUTPUT_MAX_BYTES = 2000;

/**
 * Runs `COMMAND VM HOST GENERATION`, the same in its environment as COLO_VM, COLO_HOST and COLO_GENERATION. Resolves when it has exited with 0. Throws
 * FenceError for anything else, which includes a time-out and `skipped`: it is killed then, with every process of its group. Its output is logged.
 */
export async function fence(
  options: FenceOptions,
  target: FenceTarget,
  log: Log,
  skipped?: AbortSignal,
): Promise<void> {
  const { vm, host, generation } = target;
  const args = [vm, host, String(generation)];
  log.warn('fencing', { command: options.command, host, generation });
  const environment = { COLO_VM: vm, COLO_HOST: host, COLO_GENERATION: String(generation) };
  const { ended, output } = await run(options, args, { ...process.env, ...environment }, skipped);
  if (ended === null) {
    log.warn('fenced', { host, output });
    return;
  }
  const said = output === '' ? 'it said nothing' : `it said: ${output}`;
  const remedy = `mend it, or fence by hand and say \`colo-agent failover --force ${vm}\``;
  throw new FenceError(
    `${host} is not fenced: ${options.command} ${args.join(' ')} ${ended}; ${said}; ${remedy}`,
  );
}

/** `ended`: null for exit status 0, else what happened. */
function run(
  { command, timeoutMs }: FenceOptions,
  args: string[],
  env: NodeJS.ProcessEnv,
  skipped?: AbortSignal,
): Promise<{ ended: string | null; output: string }> {
  return new Promise((resolve) => {
    // A group of its own, so that a script's children end with it.
    const child = spawn(command, args, { env, stdio: ['ignore', 'pipe', 'pipe'], detached: true });
    let output = '';
    const keep = (chunk: Buffer) => {
      output = (output + chunk.toString('utf8')).slice(-OUTPUT_MAX_BYTES);
    };
    child.stdout.on('data', keep);
    child.stderr.on('data', keep);
    const end = (ended: string | null) => {
      clearTimeout(timer);
      skipped?.removeEventListener('abort', giveUp);
      resolve({ ended, output: output.trim() });
    };
    const giveUp = () => {
      killGroup(child.pid);
      end('was given up');
    };
    skipped?.addEventListener('abort', giveUp);
    const timer = setTimeout(() => {
      killGroup(child.pid);
      end(`has not come to an end within ${timeoutMs / 1000} s`);
    }, timeoutMs);
    child.once('error', (error) => end(`could not be run: ${error.message}`));
    // Its exit counts, not the end of its output: a child that it leaves behind may hold that open.
    child.once('exit', (code, signal) => {
      if (code === 0) setImmediate(() => end(null));
      else setImmediate(() => end(signal === null ? `exited with ${code}` : `was killed by ${signal}`));
    });
  });
}

function killGroup(pid: number | undefined): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, 'SIGKILL');
  } catch {
    // It has ended in this very moment.
  }
}
