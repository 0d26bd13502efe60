/** The few figures that the goals are about. A figure that wasn't measured, or couldn't be, is null: never a guess. Pure. */
import { bestKernel } from './codec-kernel.mjs';
import { rounded } from './statistics.mjs';

/** `run` is what `--json` writes, without this. */
export function summaryOf(run) {
  const floor = run.checkpoints?.floor;
  return {
    pauseVsPeer: {
      idle: rounded(run.peer?.ratios?.idle?.p50),
      dirty2000: rounded(run.peer?.ratios?.dirty2000?.p50),
      // The worse of the two loads: one good p99 must not hide a bad one.
      p99: rounded(worst([run.peer?.ratios?.idle?.p99, run.peer?.ratios?.dirty2000?.p99])),
    },
    pauseAboveFloor: {
      idleMs: rounded(floor?.idle?.aboveMs),
      dirty2000Ms: rounded(floor?.dirty2000?.aboveMs),
      copyMs: rounded(floor?.dirty2000?.copyMs),
    },
    captureVsCopy: rounded(nativeRow(run, /^BM_CaptureBesideCopy\/1\//)?.ofLimit),
    codecUnchangedGBps: rounded(gigabytes(codecRow(run)?.bytesPerSecond)),
    wireVsRawSparse: rounded(checkpointRow(run, '2,000 random pages / 10 ms')?.wireVsRaw, 4),
    scanMsPerGiB: rounded(milliseconds(nativeRow(run, /^BM_Userfaultfd\/0\/1\//)?.ns)),
    requestAddedMsP50: rounded(run.client?.requestAddedMsP50),
    failoverMsP50: rounded(run.failover?.failoverMs?.p50, 1),
    machine: run.machine,
    qemu: run.qemu ?? null,
    peerQemu: run.peer?.qemu ?? null,
    commit: run.commit ?? null,
  };
}

function worst(values) {
  return values.every((value) => Number.isFinite(value)) ? Math.max(...values) : null;
}

function nativeRow(run, pattern) {
  return run.native?.find(({ name }) => pattern.test(name));
}

function codecRow(run) {
  const kernel = bestKernel((run.native ?? []).map(({ name }) => name));
  return nativeRow(run, new RegExp(`^encode/${kernel}/changed_lines:0$`));
}

function checkpointRow(run, load) {
  return run.checkpoints?.rows?.find((row) => row.load === load && row.intervalMs === 100);
}

function gigabytes(bytes) {
  return bytes === undefined ? null : bytes / 1e9;
}

function milliseconds(ns) {
  return ns === undefined ? null : ns / 1e6;
}
