/**
 * From kill -9, of QEMU and of its agent by turns, to the first new byte on a connection that stood before. The survivor of each round is the primary of
 * the next, so one guest and one connection live through all of them.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { TestAgent } from '../dist/testbed/agents.js';
import { StreamClient } from '../dist/testbed/client.js';
import { TestNetwork } from '../dist/testbed/network.js';
import { monotonicMs } from '../dist/testbed/wait.js';
import { startGuest, TIMEOUT_MS } from './bed.mjs';
import { withCleanup } from './cleanups.mjs';
import { PauseWatch } from './pauses.mjs';
import { rounded, summarize } from './statistics.mjs';

/** How often the guest sends a line: an interruption is known no more precisely than that. */
const LINE_MS = 5;
/** A kill falls anywhere into these, which are several checkpoints long. */
const RANDOM_MS = 500;

/** Returns {failoverMs, resumedMs, byKill, rounds, stream}; `resumedMs` ends with the standby's RESUME event. Rejects when the stream has a gap: a fast failover that loses bytes is none. */
export async function benchFailover({ quick, qemu, log }) {
  return withCleanup(async (cleanup) => {
    const network = cleanup.own(await TestNetwork.create());
    const guest = { append: `colo.services=counter colo.counter=${LINE_MS}`, ...(qemu && { qemu }) };
    let vm = await startGuest(cleanup, network, 'first', guest);
    const client = cleanup.own(await StreamClient.connect(network));
    const rounds = [];
    for (let round = 0; round < (quick ? 4 : 20); round++) {
      const killed = round % 2 === 0 ? 'QEMU' : 'agent';
      const standbyVm = await startGuest(cleanup, network, `standby-${round}`, { ...guest, paused: true });
      rounds.push({ killed, ...(await failOver(cleanup, client, vm, standbyVm, killed)) });
      vm = standbyVm;
      log(`failover ${round + 1}: kill -9 of the ${killed}, ${rounds.at(-1).ms} ms`);
    }
    const { received, gaps, regressions } = client.check;
    if (gaps > 0 || regressions > 0)
      throw new Error(`the client's stream has ${gaps} gaps and ${regressions} regressions`);
    const of = (killed) => rounds.filter((round) => round.killed === killed).map(({ ms }) => ms);
    return {
      qemu: await vm.qemuVersion(),
      failoverMs: summarize(rounds.map(({ ms }) => ms)),
      resumedMs: summarize(rounds.map(({ resumedMs }) => resumedMs)),
      byKill: { QEMU: summarize(of('QEMU')), agent: summarize(of('agent')) },
      rounds,
      stream: { received, gaps, regressions },
    };
  });
}

async function failOver(cleanup, client, vm, standbyVm, killed) {
  const secondary = await startAgent(cleanup, 'secondary', standbyVm, [
    '--listen',
    '127.0.0.1:0',
    '--witness',
    'none',
  ]);
  const { listen } = await secondary.status();
  const primary = await startAgent(cleanup, 'primary', vm, ['--peer', listen]);
  await primary.waitState('PROTECTED', TIMEOUT_MS);
  await client.waitAfter(monotonicMs(), TIMEOUT_MS);
  await sleep(Math.random() * RANDOM_MS);

  const watch = cleanup.own(await PauseWatch.open(standbyVm));
  const killedAtMs = monotonicMs();
  const killedDateMs = Date.now();
  (killed === 'QEMU' ? vm : primary).kill('SIGKILL');
  await secondary.waitState('RUNNING', TIMEOUT_MS);
  vm.kill('SIGKILL');
  // What came within this was on its way to the client when the kill fell.
  const first = await client.waitAfter(killedAtMs + 1, TIMEOUT_MS);
  await secondary.command('stop');
  await secondary.exited;
  watch.destroy();
  const resumedMs = rounded(watch.resumedAtMs - killedDateMs, 1);
  return { ms: rounded(first.atMs - killedAtMs, 1), resumedMs };
}

async function startAgent(cleanup, role, vm, args) {
  return cleanup.own(await TestAgent.start(role, ['--vm', 'bench', '--qmp', vm.qmpPath, ...args]));
}
