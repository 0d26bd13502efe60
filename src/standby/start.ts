/** Starting a standby's QEMU by a plan, so that it outlives whoever starts it. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  existsSync,
  fstatSync,
  ftruncateSync,
  lstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
} from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { QmpClient } from '../qmp/client.ts';
import { assertUsableAsStandby, PreflightError } from '../vm/preflight.ts';
import { refusal } from './command.ts';
import type { PlannedDisk, StandbyPlan } from './plan.ts';

/** A QEMU with a large guest on a busy host may take a while until its main loop answers. */
const ANSWER_MS_MAX = 120_000;
const POLL_MS = 50;
const LOG_TAIL_BYTES = 2000;

export interface StartedStandby {
  pid: number;
  qmpPath: string;
  /** The systemd unit it lives in; null: it is a session of its own. */
  unit: string | null;
  logPath: string;
}

export class StartError extends Error {
  override readonly name = 'StartError';
}

/** A service manager that runs here, as sd_booted(3) tells. */
export function hasSystemd(): boolean {
  return lstatSync('/run/systemd/system', { throwIfNoEntry: false })?.isDirectory() ?? false;
}

export function unitName(vm: string): string {
  return `colo-vm-${vm}.scope`;
}

/**
 * In a scope QEMU belongs to no service: whatever systemd does to the agent's, the VM's processes aren't among them. Without systemd a session of its own keeps
 * it from the signals of the terminal and from what kills a process group.
 */
export function startCommand({ vm, command }: StandbyPlan, scope: boolean): string[] {
  if (!scope) return command;
  return ['systemd-run', '--scope', '--quiet', '--collect', '--unit', unitName(vm), '--', ...command];
}

/**
 * Makes what is missing, starts QEMU, and resolves when it stands as a standby that `secondary` will take. Throws PreflightError for what stands against it, StartError
 * when QEMU ends or doesn't answer; a QEMU that won't do is ended again. Files that are there are left as they are.
 */
export async function startStandby(plan: StandbyPlan, scope: boolean): Promise<StartedStandby> {
  assertStartable(plan);
  mkdirSync(plan.folder, { recursive: true, mode: 0o755 });
  const made: string[] = [];
  try {
    plan.privateFolders.forEach(makePrivate);
    for (const disk of plan.disks) makeDisk(disk, made);
    return await startQemu(plan, scope);
  } catch (error) {
    // They are empty, and the next attempt may have another size.
    for (const file of made) rmSync(file, { force: true });
    throw error;
  }
}

function assertStartable(plan: StandbyPlan): void {
  const missing = plan.needed
    .filter(({ path: file }) => !existsSync(file))
    .map(({ what, path: file }) =>
      refusal(what, `${file} isn't on this host`, "put the same there as on the primary's host"),
    );
  const wrong = plan.disks.flatMap(unfitFile);
  if (missing.length + wrong.length > 0) throw new PreflightError([...missing, ...wrong]);
}

/** Longer files are refused by `secondary`, too; here it is told before QEMU is started. */
function unfitFile({ id, file, sizeBytes }: PlannedDisk) {
  const found = statSync(file, { throwIfNoEntry: false });
  if (found?.isDirectory())
    return [
      refusal(`disk ${id}`, `${file} is a folder`, `make the plan anew with a file: --disk ${id}=FILE`),
    ];
  if (found?.isFile() && found.size > sizeBytes) {
    return [
      refusal(
        `disk ${id}`,
        `${file} has ${found.size} bytes, the primary's disk ${sizeBytes}: it is another disk`,
        `move it away, or make the plan anew with another file: --disk ${id}=FILE`,
      ),
    ];
  }
  if (found !== undefined || !file.startsWith('/dev/')) return [];
  return [
    refusal(`disk ${id}`, `there is no block device ${file}`, 'make it, as large as the primary has it'),
  ];
}

/** O_EXCL: what is there is somebody's. What had to be made is added to `made`. */
function makeDisk({ file, sizeBytes }: PlannedDisk, made: string[]): void {
  mkdirSync(path.dirname(file), { recursive: true });
  let fd: number;
  try {
    fd = openSync(file, 'wx', 0o600);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return;
    throw error;
  }
  made.push(file);
  try {
    ftruncateSync(fd, sizeBytes);
  } finally {
    closeSync(fd);
  }
}

/** Throws StartError for one that is there and that somebody else may have a hand in. */
function makePrivate(folder: string): void {
  try {
    mkdirSync(folder, { mode: 0o700 });
    return;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
  }
  const found = lstatSync(folder);
  if (found.isDirectory() && found.uid === process.geteuid?.() && (found.mode & 0o077) === 0) return;
  throw new StartError(`${folder} is there, and not a folder that only this user may enter: remove it`);
}

async function startQemu(plan: StandbyPlan, scope: boolean): Promise<StartedStandby> {
  await assertFree(plan.qmpPath);
  const logPath = path.join(plan.folder, 'qemu.log');
  const log = openSync(logPath, 'a', 0o600);
  const before = fstatSync(log).size;
  const [file = '', ...args] = startCommand(plan, scope);
  // Its own session, no terminal, none of our pipes: it must not notice our end.
  const child = spawn(file, args, { detached: true, cwd: plan.folder, stdio: ['ignore', log, log] });
  closeSync(log);
  let ended: string | null = null;
  child.on('exit', (code, signal) => {
    ended = signal ?? `status ${code}`;
  });
  try {
    await once(child, 'spawn');
  } catch (error) {
    throw new StartError(`${file} can't be started: ${(error as Error).message}`);
  }
  const said = () => readFileSync(logPath).subarray(before).toString().slice(-LOG_TAIL_BYTES).trim();
  try {
    const pid = await untilFit(plan.qmpPath, () => {
      if (ended !== null)
        throw new StartError(
          `QEMU ended (${ended}) before it answered; ${logPath} says: ${said() || 'nothing'}`,
        );
    });
    child.unref();
    return { pid, qmpPath: plan.qmpPath, unit: scope ? unitName(plan.vm) : null, logPath };
  } catch (error) {
    // QEMU or systemd-run, which becomes QEMU by exec: the process is the same.
    if (ended === null) {
      child.kill('SIGKILL');
      await once(child, 'exit');
    }
    throw error;
  }
}

/** A QEMU would take the socket's name away from one that is there already. */
async function assertFree(qmpPath: string): Promise<void> {
  if (!existsSync(qmpPath)) return;
  try {
    const qmp = await QmpClient.connect(qmpPath);
    qmp.close();
  } catch (error) {
    const { desc = '' } = error as { desc?: string };
    // The name that a QEMU left behind, which it takes no offence at.
    if (/nobody listens|ECONNREFUSED|refused/i.test(desc)) return;
    throw new StartError(`${qmpPath} is in use: ${(error as Error).message}`);
  }
  throw new StartError(
    `a QEMU answers at ${qmpPath} already: is this standby started? Else end that QEMU, or make the plan anew with another --qmp-path`,
  );
}

async function untilFit(qmpPath: string, assertRuns: () => void): Promise<number> {
  const qmp = await untilAnswers(qmpPath, assertRuns);
  try {
    const { status } = await qmp.execute('query-status');
    if (status !== 'prelaunch')
      throw new StartError(`the QEMU behind ${qmpPath} is ${status}, not prelaunch: a standby must not run`);
    await assertUsableAsStandby(qmp, qmp.peer.pid);
    return qmp.peer.pid;
  } finally {
    qmp.close();
  }
}

async function untilAnswers(qmpPath: string, assertRuns: () => void): Promise<QmpClient> {
  const deadline = performance.now() + ANSWER_MS_MAX;
  for (;;) {
    assertRuns();
    try {
      return await QmpClient.connect(qmpPath);
    } catch (error) {
      if (performance.now() > deadline) throw new StartError((error as Error).message);
    }
    await sleep(POLL_MS);
  }
}
