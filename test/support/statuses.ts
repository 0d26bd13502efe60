/** Statuses as agents tell them, with every figure another one. */
import {
  CHECKPOINT_BOUNDS_MS,
  Durations,
  type Histogram,
  STEP_BOUNDS_MS,
  TAKE_OVER_BOUNDS_MS,
} from '../../src/agent/durations.ts';
import type { PrimaryStatus, ProcessStatus, SecondaryStatus } from '../../src/agent/status.ts';

const NO_SUMMARY = { last: null, p50: null, p99: null, max: null };

export function counted(boundsMs: readonly number[], ...values: number[]): Histogram {
  const durations = new Durations(boundsMs);
  for (const value of values) durations.add(value);
  return durations.histogram();
}

const common = {
  vm: 'web1',
  reason: 'because',
  ifPrimaryDies: '',
  witness: { kind: 'etcd', node: 'north', answers: true, reason: '' },
  generation: 7,
  epoch: 4711,
  lastCheckpointAgeMs: 45,
  link: {
    encryption: 'tls',
    cipher: 'TLSv1.3',
    peer: 'web1',
    fingerprint: 'ab',
    expires: '2030-01-01T00:00:00.000Z',
  },
  heartbeat: {
    sent: 51,
    received: 52,
    rttUs: { min: 90, p50: 100, p99: 250, max: 400 },
    gapUs: { min: 49_000, p50: 50_000, p99: 51_000, max: 75_000 },
    realTime: true,
  },
  agentPid: 10,
  qemuPid: 11,
  takeOvers: counted(TAKE_OVER_BOUNDS_MS),
} as const;

export function primaryStatus(over: Partial<PrimaryStatus & ProcessStatus> = {}) {
  const status: PrimaryStatus & ProcessStatus = {
    ...common,
    role: 'primary',
    state: 'PROTECTED',
    mode: 'pipelined',
    peer: 'south:7700',
    syncPercent: null,
    syncSecondsLeft: null,
    checkpoints: 4,
    pauseMs: NO_SUMMARY,
    pauseShare: 0.01,
    pauseTotalMs: 17.25,
    checkpointMs: { p50: null, p99: null },
    histograms: {
      pause: counted(STEP_BOUNDS_MS, 3, 3.25, 4, 7),
      checkpoint: counted(CHECKPOINT_BOUNDS_MS, 5, 6, 20_000, 8),
    },
    dirtyPages: { last: 12, p50: 13, total: 1400 },
    pauseStepsUs: null,
    sentBytes: 150_000,
    checkpointBytes: { wire: 16_000, raw: 170_000 },
    heldFrames: 18,
    heldBytes: 1900,
    droppedFrames: 2,
    tracker: 'userfaultfd',
    trackerReason: '',
    scrub: {
      sliceBytes: 8,
      rounds: 21,
      lastRoundMs: 22,
      checkedPages: 23,
      skippedPages: 24,
      cpuUs: NO_SUMMARY,
      found: 1,
      lastFinding: 'pc.ram',
    },
    ungated: [],
    disks: ['a', 'b'].map((id) => ({
      id,
      state: 'mirrored' as const,
      sizeBytes: 1000,
      differingBytes: 128,
      loggedBytes: 256,
      writes: 33,
    })),
    ungatedDisks: [],
    sharedDisks: [],
  };
  return { ...status, ...over };
}

export function secondaryStatus(over: Partial<SecondaryStatus & ProcessStatus> = {}) {
  const status: SecondaryStatus & ProcessStatus = {
    ...common,
    role: 'secondary',
    state: 'STANDBY',
    listen: ':7700',
    receivedBytes: 150_001,
    checkpoints: 3,
    disks: [],
    flushMs: NO_SUMMARY,
    loadMs: NO_SUMMARY,
    histograms: { flush: counted(STEP_BOUNDS_MS, 1, 2), load: counted(STEP_BOUNDS_MS, 30) },
    scrub: { ms: NO_SUMMARY, checkedPages: 25, found: 0 },
  };
  return { ...status, ...over };
}
