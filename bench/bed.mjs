/** One guest in a network of its own, its standby, and colo-agent between them when it is asked for; what the sections measure on. */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { TestAgent } from '../dist/testbed/agents.js';
import { PORTS, request } from '../dist/testbed/client.js';
import { standbyDisks } from '../dist/testbed/disks.js';
import { GUEST_ADDRESS, TestNetwork } from '../dist/testbed/network.js';
import { TestVm } from '../dist/testbed/vm.js';
import { monotonicMs } from '../dist/testbed/wait.js';
import { PauseWatch } from './pauses.mjs';

export const TIMEOUT_MS = 120_000;
/** So long a new load, or a new protection, may take to come to its steady state. */
const SETTLE_MS = 1000;
const SERVICES = 'load,stream,counter';
const CLIENT = path.join(import.meta.dirname, 'net-client.mjs');
/** Put before a command: it doesn't outlive the benchmark, however that ends. */
export const DIES_WITH_US = ['setpriv', '--pdeathsig', 'KILL', '--'];
const CLOCK_TICKS_PER_SECOND = 100; // sysconf(_SC_CLK_TCK) is 100 on every Linux on x86-64

/** The loads of guest/load.c, by the names that tables have. */
export const LOADS = {
  idle: { name: 'idle', command: 'idle' },
  dirty500: { name: '500 random pages / 10 ms', command: 'random 500 10' },
  dirty2000: { name: '2,000 random pages / 10 ms', command: 'random 2000 10' },
  dirty8000: { name: '8,000 random pages / 10 ms', command: 'random 8000 10' },
  sequential: { name: 'sequential, 500 pages / 10 ms', command: 'sequential 500 10' },
  requests: { name: 'request/response', command: 'idle' },
};

/** The guest's VM, up and with its services listening unless it doesn't boot. `bridge` 1 is one that nobody else is on. */
export async function startGuest(cleanup, network, name, options = {}) {
  const { bridge = 0, services = SERVICES, boots = !options.paused, ...vmOptions } = options;
  const vm = cleanup.own(
    await TestVm.start({
      name,
      guest: 'linux',
      sharedRam: true,
      network,
      nics: [{ tap: await network.addTap({ bridge }) }],
      append: `colo.services=${services}`,
      ...vmOptions,
    }),
  );
  if (boots) await vm.waitConsole('GUEST-READY', TIMEOUT_MS);
  return vm;
}

export class Bed {
  /** `options` are those of startGuest, and hold for both VMs. */
  static async start(cleanup, options = {}) {
    const bed = new Bed();
    bed.network = cleanup.own(await TestNetwork.create());
    bed.primaryVm = await startGuest(cleanup, bed.network, 'primary', options);
    bed.standbyVm = await startGuest(cleanup, bed.network, 'standby', {
      ...options,
      ...(options.disks && { disks: standbyDisks(options.disks) }),
      paused: true,
    });
    const args = ['--vm', 'bench', '--qmp', bed.standbyVm.qmpPath, '--listen', '127.0.0.1:0'];
    bed.secondary = cleanup.own(await TestAgent.start('secondary', args));
    ({ listen: bed.listen } = await bed.secondary.status());
    bed.watch = cleanup.own(await PauseWatch.open(bed.primaryVm));
    return bed;
  }

  /** Protects the guest; resolves, when it is in its steady state, with the agent and what ends it again. */
  async protect(cleanup, args = []) {
    const common = ['--vm', 'bench', '--qmp', this.primaryVm.qmpPath, '--peer', this.listen];
    const primary = cleanup.own(await TestAgent.start('primary', [...common, ...args]));
    await primary.waitState('PROTECTED', TIMEOUT_MS);
    await sleep(SETTLE_MS);
    const end = async () => {
      await primary.command('stop');
      await primary.exited;
    };
    return { primary, end };
  }

  async setLoad(load) {
    await setLoad(this.network, load);
  }
}

export async function setLoad(network, load) {
  const answer = await request(network, PORTS.load, `${LOADS[load].command}\n`, TIMEOUT_MS);
  if (answer !== 'ok') throw new Error(`the guest's load: ${answer}`);
  await sleep(SETTLE_MS);
}

/** How many rounds a second the guest's load makes while `work` runs, by the host's clock. */
export async function roundsPerSecond(network, work) {
  const before = await readRounds(network);
  await work();
  const after = await readRounds(network);
  return ((after.rounds - before.rounds) * 1000) / (after.atMs - before.atMs);
}

async function readRounds(network) {
  const answer = await request(network, PORTS.load, 'progress\n', TIMEOUT_MS);
  const rounds = /^rounds (\d+)$/.exec(answer)?.[1];
  if (rounds === undefined) throw new Error(`the guest's load: ${answer}`);
  return { rounds: Number(rounds), atMs: monotonicMs() };
}

/** Requests of 64 bytes, each when the one before has been answered, for `seconds`: their latencies in milliseconds. */
export async function askRepeatedly(network, seconds, mode = 'latency') {
  const { latenciesMs } = await netClient(network, mode, PORTS.echo, seconds);
  return latenciesMs;
}

/** Bytes a second that one connection carries from the guest (`download`) or to it (`upload`), in MB/s. */
export async function transfer(network, direction, seconds) {
  const port = direction === 'download' ? PORTS.source : PORTS.sink;
  const { bytes, seconds: took } = await netClient(network, direction, port, seconds);
  return bytes / took / 1e6;
}

async function netClient(network, mode, port, seconds) {
  const command = [process.execPath, CLIENT, mode, GUEST_ADDRESS, String(port), String(seconds)];
  return JSON.parse(await network.exec(...DIES_WITH_US, ...command));
}

/** Processor time that a process has used since it began, all its threads together, in milliseconds. */
export function cpuMs(pid) {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  // The name in parentheses may hold anything; utime and stime are fields 14 and 15 of proc_pid_stat(5).
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return ((Number(fields[11]) + Number(fields[12])) * 1000) / CLOCK_TICKS_PER_SECOND;
}

/** The most physical memory that a process has had, in MiB. */
export function peakMemoryMiB(pid) {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  return Math.round(Number(/^VmHWM:\s+(\d+) kB/m.exec(status)?.[1]) / 1024);
}
