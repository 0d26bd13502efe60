/**
 * `colo-agent estimate`: watches a VM that nobody protects, and forecasts what its protection would cost. The guest is not stopped (but once, if
 * the floor is to be measured) and QEMU is left as it was, however this ends: there is nothing in it but a userfaultfd whose only descriptor is
 * ours, and for the floor an fd set that is taken away again.
 */
import { fstatSync } from 'node:fs';
import { type DirtyRateProbe, type DirtyRateRound, type NativeError, native } from '../native/binding.ts';
import { DEFAULT_TIMINGS } from '../protocol/machine.ts';
import { QmpClient } from '../qmp/client.ts';
import { DISK_PREFIX } from '../vm/disk-mirror.ts';
import { bytesWrittenToDisks } from '../vm/disk-writes.ts';
import { findLeftovers } from '../vm/gate-wiring.ts';
import { assertProtectable, PreflightError } from '../vm/preflight.ts';
import { findRamBlocks, type RamBlock } from '../vm/ram-blocks.ts';
import { VmstateFile } from '../vm/vmstate.ts';
import { monotonicMs } from './driver.ts';
import { type FixedCost, forecast, type IntervalForecast, pageCosts } from './forecast.ts';
import type { Log } from './log.ts';
import { PauseGuard } from './pause-guard.ts';
import { RunState } from './run-state.ts';
import { Samples, type Summary } from './samples.ts';
import { wakeInterrupts } from './wake-interrupts.ts';

export interface EstimateOptions {
  qmpPath: string;
  seconds: number;
  intervalsMs: readonly number[];
  threads: number;
  /** Stop the guest once, for what a pause costs at the least. */
  measureFloor: boolean;
  linkMbitPerSecond: number;
  linkRoundTripUs: number;
  /** Ends the watch at once. */
  signal: AbortSignal;
  log: Log;
}

/** What `colo-agent estimate --json` prints. Scripts rely on these names; fields are added, never renamed. */
export interface Estimate {
  qemuPid: number;
  ramBytes: number;
  watchedMs: number;
  intervals: IntervalForecast[];
  fixed: FixedCost & { source: 'assumed' | 'measured' };
  qmpRoundTripMs: Summary;
  /** By the sample; null when none of it was ever dirty. */
  copyUsPerPage: number | null;
  encodeUsPerPage: number | null;
  sampleOneIn: number;
  diskBytesPerSecond: number;
  link: { mbitPerSecond: number; roundTripUs: number };
  /** Somebody paused the guest meanwhile: the forecast is too low. */
  pausedMeanwhile: boolean;
  /** What stands against protecting this VM as it is. */
  problems: string[];
}

export class EstimateError extends Error {
  readonly code: string;

  constructor(message: string, code = 'refused') {
    super(message);
    this.name = 'EstimateError';
    this.code = code;
  }
}

/** Too few windows of an interval tell nothing. */
const WINDOWS_MIN = 3;

/** Longer intervals get more of the time, by the root of their length, and less of the number of windows. */
const shareOf = (intervalMs: number) => Math.sqrt(intervalMs);

/** How long it takes to see enough windows of each of the intervals. */
export function watchMsMin(intervalsMs: readonly number[]): number {
  const shares = intervalsMs.reduce((sum, intervalMs) => sum + shareOf(intervalMs), 0);
  return WINDOWS_MIN * shareOf(Math.max(...intervalsMs)) * shares;
}

/**
 * Of the fixed cost, only the round trips to QEMU can be measured without stopping the guest. What QEMU itself needs to drain, to save the device
 * state and to go on is assumed to be what a small VM needs (README, "the guest stands, idle"), and the device state to be as long as such a VM's.
 */
const ASSUMED_QEMU_MS = 2;
const ASSUMED_VMSTATE_BYTES = 32 * 1024;
/** `stop` and the save leave together, `cont` follows. */
const ROUND_TRIPS = 2;

/** The sample's share grows smaller with the guest, so that the sample itself doesn't grow beyond this. */
const SAMPLE_BYTES_MAX = 128 * 1024 * 1024;
const SAMPLE_ONE_IN_MIN = 16;

const NO_EXCEPTIONS = { ungatedNics: [], ungatedDisks: [], sharedDisks: [] };

/** Throws EstimateError when the VM can't be watched, QmpError, or NativeError. */
export async function estimate(options: EstimateOptions): Promise<Estimate> {
  const qmp = await QmpClient.connect(options.qmpPath);
  try {
    return await new Estimator(options, qmp).run();
  } catch (error) {
    if (options.signal.aborted) throw new EstimateError('interrupted; QEMU is as it was', 'interrupted');
    if (error instanceof EstimateError) throw error;
    throw (await answers(qmp)) ? error : new EstimateError('QEMU has ended, or its monitor has');
  } finally {
    qmp.close();
  }
}

class Estimator {
  readonly #options: EstimateOptions;
  readonly #qmp: QmpClient;
  readonly #roundTripMs = new Samples();
  readonly #windows = new Map<number, DirtyRateRound[]>();
  #pausedMeanwhile = false;

  constructor(options: EstimateOptions, qmp: QmpClient) {
    this.#options = options;
    this.#qmp = qmp;
  }

  async run(): Promise<Estimate> {
    const { linkMbitPerSecond, linkRoundTripUs, measureFloor } = this.#options;
    const qmp = this.#qmp;
    const { pid } = qmp.peer;
    await assertUnprotected(qmp);
    const problems = await problemsOf(qmp, pid);
    if (measureFloor) assertMayStop(problems);
    const blocks = await findRamBlocks(qmp, pid);
    const ramBytes = blocks.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    const sampleOneIn = Math.max(SAMPLE_ONE_IN_MIN, Math.ceil(ramBytes / SAMPLE_BYTES_MAX));
    const watched = await this.#watch(pid, blocks, sampleOneIn);
    const fixed = measureFloor ? await this.#measureFloor() : this.#assumeFloor();
    const costs = pageCosts([...this.#windows.values()].flat());
    const conditions = {
      fixed,
      timings: DEFAULT_TIMINGS,
      diskBytesPerSecond: watched.diskBytesPerSecond,
      linkBitsPerSecond: linkMbitPerSecond * 1e6,
      linkRoundTripMs: linkRoundTripUs / 1000,
    };
    return {
      qemuPid: pid,
      ramBytes,
      watchedMs: watched.ms,
      intervals: [...this.#windows].map(([intervalMs, windows]) =>
        forecast(intervalMs, windows, costs, conditions),
      ),
      fixed,
      qmpRoundTripMs: this.#roundTripMs.summary(),
      copyUsPerPage: costs.copyUs,
      encodeUsPerPage: costs.encodeUs,
      sampleOneIn,
      diskBytesPerSecond: watched.diskBytesPerSecond,
      link: { mbitPerSecond: linkMbitPerSecond, roundTripUs: linkRoundTripUs },
      pausedMeanwhile: this.#pausedMeanwhile,
      problems,
    };
  }

  async #watch(
    pid: number,
    blocks: RamBlock[],
    sampleOneIn: number,
  ): Promise<{ ms: number; diskBytesPerSecond: number }> {
    const { signal, threads } = this.#options;
    const probe = attachProbe({ pid, blocks, threads, sampleOneIn });
    const onAbort = () => probe.close();
    signal.addEventListener('abort', onAbort);
    const stopListening = this.#qmp.onEvent('STOP', () => {
      this.#pausedMeanwhile = true;
    });
    try {
      signal.throwIfAborted();
      await probe.begin();
      const beganMs = monotonicMs();
      const before = await bytesWrittenToDisks(this.#qmp, NO_EXCEPTIONS);
      await this.#watchInTurns(probe, beganMs + this.#options.seconds * 1000);
      const after = await bytesWrittenToDisks(this.#qmp, NO_EXCEPTIONS);
      const ms = monotonicMs() - beganMs;
      return { ms, diskBytesPerSecond: ((after - before) * 1000) / ms };
    } finally {
      stopListening();
      signal.removeEventListener('abort', onAbort);
      probe.close();
    }
  }

  /** Windows of all intervals take turns, so that all see the same load. */
  async #watchInTurns(probe: DirtyRateProbe, endMs: number): Promise<void> {
    const turns = this.#options.intervalsMs.map((intervalMs) => ({ intervalMs, spent: 0 }));
    for (const { intervalMs } of turns) this.#windows.set(intervalMs, []);
    for (;;) {
      const next = turns.reduce((least, turn) => (turn.spent < least.spent ? turn : least));
      const enough = [...this.#windows.values()].every(({ length }) => length >= WINDOWS_MIN);
      if (enough && monotonicMs() + next.intervalMs > endMs) return;
      const [round] = await Promise.all([probe.watch(next.intervalMs * 1000), this.#measureRoundTrip()]);
      this.#windows.get(next.intervalMs)?.push(round);
      next.spent += shareOf(next.intervalMs);
    }
  }

  async #measureRoundTrip(): Promise<void> {
    const beganMs = monotonicMs();
    await this.#qmp.execute('query-status');
    this.#roundTripMs.add(monotonicMs() - beganMs);
  }

  #assumeFloor(): FixedCost & { source: 'assumed' } {
    const roundTripMs = this.#roundTripMs.summary().p50 ?? 0;
    return {
      pauseMs: ASSUMED_QEMU_MS + ROUND_TRIPS * roundTripMs,
      vmstateBytes: ASSUMED_VMSTATE_BYTES,
      source: 'assumed',
    };
  }

  /** As a checkpoint of nothing but the device state would. */
  async #measureFloor(): Promise<FixedCost & { source: 'measured' }> {
    const qmp = this.#qmp;
    let pauseMs = Number.NaN;
    assertMayStop(await problemsOf(qmp, qmp.peer.pid)); // devices may have come since
    // INVARIANT 7: should this process be killed while the guest stands.
    const guard = await PauseGuard.start(qmp, this.#options.log);
    const runState = new RunState(qmp, guard, () => wakeInterrupts(qmp.peer.pid, this.#options.log));
    runState.listen({
      onPaused: () => {},
      onResumed: () => {},
      onPauseEnded: (ms) => {
        pauseMs = ms;
      },
    });
    try {
      return { ...(await this.#measurePause(runState, () => pauseMs)), source: 'measured' };
    } finally {
      await guard.close();
    }
  }

  async #measurePause(runState: RunState, pauseMs: () => number): Promise<FixedCost> {
    const qmp = this.#qmp;
    const vmstate = await VmstateFile.attach(qmp);
    try {
      const stopping = runState.stop();
      const saving = vmstate.save(qmp);
      runState.expectSave(saving);
      try {
        if (!(await stopping)) throw new EstimateError("somebody paused the VM: its pause can't be measured");
      } finally {
        // As a checkpoint does: QEMU carries it out behind the save.
        await resume(runState);
      }
      await saving;
      return { pauseMs: pauseMs(), vmstateBytes: fstatSync(vmstate.fd).size };
    } finally {
      await vmstate.detach(qmp);
    }
  }
}

async function resume(runState: RunState): Promise<void> {
  try {
    await runState.resume();
  } catch (error) {
    throw new EstimateError(
      `the guest was stopped and could not be resumed: ${(error as Error).message}; give QEMU \`cont\``,
    );
  }
}

async function answers(qmp: QmpClient): Promise<boolean> {
  try {
    await qmp.execute('query-status');
    return true;
  } catch {
    return false;
  }
}

/** An agent that protects it holds the tracker, too; this finds what one that died has left, and says more. */
async function assertUnprotected(qmp: QmpClient): Promise<void> {
  const [{ running, status }, jobs] = await qmp.executeAll([['query-status'], ['query-jobs']]);
  const mirrored = jobs.some(({ id }) => id.startsWith(DISK_PREFIX));
  if (mirrored || (await findLeftovers(qmp)).gate) {
    throw new EstimateError(
      'this VM is protected already, or an agent that died has left its gate or mirror here: `colo-agent status` has the real figures of the ' +
        'first, `colo-agent primary` protects the second again',
    );
  }
  if (!running) {
    throw new EstimateError(`this VM is ${status}: there is nothing to watch until it runs`);
  }
}

/**
 * Only what can be protected is stopped: waking QEMU afterwards signals eventfds, which those of VFIO devices take for errors
 * (native/core/eventfd_kick.h), and a migration or backup under way is somebody else's.
 */
function assertMayStop(problems: readonly string[]): void {
  if (problems.length === 0) return;
  throw new EstimateError(
    `--measure-floor would stop this VM, which can't be protected as it is: ${problems.join('; ')}. Leave --measure-floor out`,
  );
}

async function problemsOf(qmp: QmpClient, pid: number): Promise<string[]> {
  try {
    await assertProtectable(qmp, pid, NO_EXCEPTIONS);
    return [];
  } catch (error) {
    if (!(error instanceof PreflightError)) throw error;
    return error.problems.map(({ where, what, remedy }) => `${where}: ${what} (${remedy})`);
  }
}

type ProbeOptions = ConstructorParameters<typeof native.DirtyRateProbe>[0];

function attachProbe(options: ProbeOptions): DirtyRateProbe {
  try {
    return new native.DirtyRateProbe(options);
  } catch (error) {
    throw withRemedy(error as NativeError);
  }
}

/** What to do about a VM that can't be watched, beside what the system said. */
export function withRemedy(error: NativeError): Error {
  const remedy = REMEDIES.get(error.code);
  return remedy === undefined ? error : new EstimateError(`${remedy}: ${error.message}`, error.code);
}

const REMEDIES: ReadonlyMap<string, string> = new Map([
  [
    'ERR_COLO_UFFD_BUSY',
    'somebody else tracks the memory of this VM: an agent that protects it (`colo-agent status` has the real figures), a post-copy migration or a ' +
      'background snapshot; estimate when that has ended',
  ],
  [
    'ERR_COLO_UFFD_UNSUPPORTED',
    "dirty pages can't be counted without stopping the guest here: Linux 6.7 (better 6.9) or newer on x86-64 is needed. A protection works all the " +
      'same, but compares all of RAM in each pause',
  ],
  [
    'ERR_COLO_UFFD_DENIED',
    'QEMU may not be traced from here: run as root, or with CAP_SYS_PTRACE and CAP_SYS_ADMIN',
  ],
]);
