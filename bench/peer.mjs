/**
 * QEMU's in-tree COLO and colo-agent on the same QEMU, guest, load and interval, by turns, each time with new VMs. The pause of both is taken from the
 * primary's STOP and RESUME events, which in-tree COLO sends, too. A peer that dies, or never protects, is a row that says so.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { Bed, LOADS, roundsPerSecond, setLoad } from './bed.mjs';
import { withCleanup } from './cleanups.mjs';
import { CLIENT_SECONDS, clientRow, measureClient } from './client.mjs';
import { startPeer } from './peer-session.mjs';
import { medianRatio, rounded, summarize } from './statistics.mjs';

const INTERVAL_MS = 100;
const PEER_LOADS = ['idle', 'dirty2000'];
/** The guest's RAM by round, the same for both sides: as in the other sections, and as QEMU has it by default, which we can't map. */
const RAM_BY_ROUND = {
  quick: ['shared'],
  full: ['shared', 'private', 'shared', 'private', 'shared'],
};

const SIDES = {
  'colo-agent': async (cleanup, vm) => {
    const bed = await Bed.start(cleanup, vm);
    const { primary } = await bed.protect(cleanup, ['--interval', String(INTERVAL_MS)]);
    const assertAlive = async () => {
      const { state, reason } = await primary.status();
      if (state !== 'PROTECTED') throw new Error(`colo-agent is ${state}: ${reason}`);
    };
    return { network: bed.network, watch: bed.watch, assertAlive };
  },
  'in-tree COLO': (cleanup, vm) => startPeer(cleanup, { vm, intervalMs: INTERVAL_MS, filters: false }),
};

/** The section's result where there is no such QEMU: no figures, and why. */
export function peerMissing(reason) {
  const row = { side: 'in-tree COLO', round: 0, ram: '-', load: '-', reason };
  return {
    qemu: null,
    intervalMs: INTERVAL_MS,
    measure: 'not measured',
    rows: [row],
    ratios: {},
    clientRows: [{ mode: row.side, reason }],
  };
}

/** Returns {qemu, rows, ratios, clientRows}. A row: {side, round, ram, load, pauseMs, checkpointsPerSecond, progressPerSecond, pauses} or {..., reason}. */
export async function benchPeer({ quick, peerQemu, peerVersion, log }) {
  const seconds = quick ? 5 : 8;
  const rows = [];
  for (const [round, ram] of RAM_BY_ROUND[quick ? 'quick' : 'full'].entries()) {
    // Who comes first changes: a machine that gets busier wears on both alike.
    const order = Object.keys(SIDES);
    for (const side of round % 2 === 0 ? order : order.reverse()) {
      rows.push(...(await measureSide({ side, round, ram }, peerQemu, seconds)));
      log(
        `peer: round ${round + 1}, ${ram} RAM, ${side}${rows.at(-1).reason ? `: ${rows.at(-1).reason}` : ''}`,
      );
    }
  }
  return {
    qemu: peerVersion,
    intervalMs: INTERVAL_MS,
    measure: 'STOP and RESUME events of the primary',
    rows,
    ratios: Object.fromEntries(
      PEER_LOADS.flatMap((load) => [
        [load, ratiosOf(rows, 'shared', LOADS[load].name)],
        ...(quick ? [] : [[`${load}PrivateRam`, ratiosOf(rows, 'private', LOADS[load].name)]]),
      ]),
    ),
    clientRows: await measureClients(peerQemu, quick),
  };
}

/** `row`: {side, round, ram}. */
async function measureSide(row, qemu, seconds) {
  const rows = [];
  try {
    await withCleanup(async (cleanup) => {
      const session = await SIDES[row.side](cleanup, { qemu, sharedRam: row.ram === 'shared' });
      for (const load of PEER_LOADS) rows.push(await measureLoad(session, row, load, seconds));
    });
  } catch (error) {
    for (const load of PEER_LOADS.slice(rows.length))
      rows.push({ ...row, load: LOADS[load].name, reason: firstLine(error) });
  }
  return rows;
}

async function measureLoad({ network, watch, assertAlive }, row, load, seconds) {
  await setLoad(network, load);
  let progressPerSecond = null;
  const pauses = await watch.during(async () => {
    const pass = () => sleep(seconds * 1000);
    if (load === 'idle') await pass();
    else progressPerSecond = await roundsPerSecond(network, pass);
  });
  await assertAlive();
  if (pauses.length === 0) throw new Error(`no checkpoint in ${seconds} s`);
  return {
    ...row,
    load: LOADS[load].name,
    pauseMs: summarize(pauses),
    checkpointsPerSecond: rounded(pauses.length / seconds, 1),
    progressPerSecond: rounded(progressPerSecond, 1),
    pauses: pauses.map((pauseMs) => rounded(pauseMs)),
  };
}

/** Ours divided by theirs, round by round, and of these the median; null when no round has both. */
function ratiosOf(rows, ram, load) {
  const ofLoad = rows.filter((row) => row.ram === ram && row.load === load);
  const ratio = (figure) => {
    const pairs = [...new Set(ofLoad.map(({ round }) => round))].map((round) => {
      const of = (side) => ofLoad.find((row) => row.round === round && row.side === side)?.pauseMs?.[figure];
      return { ours: of('colo-agent'), theirs: of('in-tree COLO') };
    });
    return rounded(medianRatio(pairs));
  };
  return { p50: ratio('p50'), p99: ratio('p99') };
}

/** What a client feels on this QEMU: without protection and with each side. A quick run has the former two of another QEMU, in another section. */
async function measureClients(qemu, quick) {
  const seconds = quick ? CLIENT_SECONDS.quick : CLIENT_SECONDS.full;
  const ours = quick
    ? []
    : await clientRowsOrReason(['unprotected', 'colo-agent'], (cleanup) =>
        measureOurClients(cleanup, qemu, seconds),
      );
  return [
    ...ours,
    ...(await clientRowsOrReason(['in-tree COLO'], (cleanup) => measurePeerClient(cleanup, qemu, seconds))),
  ];
}

async function measureOurClients(cleanup, qemu, seconds) {
  const bed = await Bed.start(cleanup, { qemu });
  const unprotected = await measureClient(bed.network, seconds);
  await bed.protect(cleanup, ['--interval', String(INTERVAL_MS)]);
  return [unprotected, await measureClient(bed.network, seconds)];
}

/** In-tree COLO with its own net filters: it holds output until the other side has said the same, and without them it wouldn't hold it at all. */
async function measurePeerClient(cleanup, qemu, seconds) {
  const { network, assertAlive } = await startPeer(cleanup, {
    vm: { qemu },
    intervalMs: INTERVAL_MS,
    filters: true,
  });
  const round = await measureClient(network, seconds);
  await assertAlive();
  return [round];
}

async function clientRowsOrReason(modes, measure) {
  try {
    const rounds = await withCleanup(measure);
    return modes.map((mode, i) => clientRow(mode, [rounds[i]]));
  } catch (error) {
    return modes.map((mode) => ({ mode, reason: firstLine(error) }));
  }
}

function firstLine(error) {
  const text = error instanceof AggregateError ? String(error.errors[0]) : error.message;
  return text.split('\n')[0].slice(0, 200);
}
