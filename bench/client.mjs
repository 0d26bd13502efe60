/** What a client feels: the latency of requests, one each 50 ms and one after the other, and what one TCP connection carries, through the gate and without it. */
import { askRepeatedly, Bed, transfer } from './bed.mjs';
import { withCleanup } from './cleanups.mjs';
import { distribution, median, medianRatio, rounded, summarize } from './statistics.mjs';

export const CLIENT_SECONDS = { quick: 3, full: 5 };

/** Returns {qemu, rows, requestAddedMsP50}; a row: {mode, requestMs (paced), busyRequestMs (one after the other), downloadMBps, uploadMBps, latencyDistribution}. The guest does nothing else. */
export async function benchClient({ quick, qemu, log }) {
  const seconds = quick ? CLIENT_SECONDS.quick : CLIENT_SECONDS.full;
  return withCleanup(async (cleanup) => {
    const bed = await Bed.start(cleanup, qemu && { qemu });
    const rounds = [];
    for (let round = 0; round < (quick ? 1 : 3); round++) {
      const unprotected = await measureClient(bed.network, seconds);
      const { end } = await bed.protect(cleanup);
      rounds.push({ unprotected, protected: await measureClient(bed.network, seconds) });
      await end();
      log(`client: round ${round + 1}`);
    }
    return {
      qemu: await bed.primaryVm.qemuVersion(),
      rows: ['unprotected', 'protected'].map((mode) =>
        clientRow(
          mode,
          rounds.map((round) => round[mode]),
        ),
      ),
      requestAddedMsP50: median(rounds.map((round) => addedMs(round))),
      downloadVsUnprotected: ratioOf(rounds, 'downloadMBps'),
      uploadVsUnprotected: ratioOf(rounds, 'uploadMBps'),
    };
  });
}

/** One round of the figures. */
export async function measureClient(network, seconds) {
  return {
    latenciesMs: await askRepeatedly(network, seconds, 'paced'),
    busyLatenciesMs: await askRepeatedly(network, seconds),
    downloadMBps: await transfer(network, 'download', seconds),
    uploadMBps: await transfer(network, 'upload', seconds),
  };
}

/** The rounds of a mode together. */
export function clientRow(mode, rounds) {
  const latenciesMs = rounds.flatMap((round) => round.latenciesMs);
  return {
    mode,
    requestMs: summarize(latenciesMs),
    busyRequestMs: summarize(rounds.flatMap((round) => round.busyLatenciesMs)),
    downloadMBps: rounded(median(rounds.map(({ downloadMBps }) => downloadMBps)), 1),
    uploadMBps: rounded(median(rounds.map(({ uploadMBps }) => uploadMBps)), 1),
    latencyDistribution: distribution(latenciesMs),
  };
}

function addedMs(round) {
  return median(round.protected.latenciesMs) - median(round.unprotected.latenciesMs);
}

function ratioOf(rounds, field) {
  return rounded(
    medianRatio(rounds.map((round) => ({ ours: round.protected[field], theirs: round.unprotected[field] }))),
  );
}
