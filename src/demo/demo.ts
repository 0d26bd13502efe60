/**
 * The whole story on one machine: a guest with a TCP counter and a memory load is protected, its primary QEMU and its agent are killed, and the client's
 * connection goes on with the standby.
 */
import type { PrimaryStatus } from '../agent/status.ts';
import { TestAgent } from '../testbed/agents.ts';
import { Cleanup } from '../testbed/cleanup.ts';
import { checkMemory, StreamClient } from '../testbed/client.ts';
import { type DiskCheck, readDisks } from '../testbed/disk-clients.ts';
import { type DiskOptions, standbyDisks } from '../testbed/disks.ts';
import { TestNetwork } from '../testbed/network.ts';
import { TestVm, type VmOptions } from '../testbed/vm.ts';
import { monotonicMs, waitFor } from '../testbed/wait.ts';

export interface DemoResult {
  result: 'ok' | 'failed';
  qemu: string;
  checkpoints: number;
  pauseMs: { p50: number | null; p99: number | null; max: number | null };
  /** The client's view: from the kill to the first new byte. */
  failoverMs: number;
  stream: { received: number; gaps: number; regressions: number };
  /** What the guest wrote, and how often a sector was not what its memory said. */
  disk: { writes: number; mismatches: number };
}

/** Seconds of protected running that are shown before the kill, and of running on the standby after it. */
const SECONDS_BEFORE = 5;
const SECONDS_AFTER = 3;
const VM_NAME = 'demo';
const GUEST_APPEND = 'colo.services=counter,memcheck,diskcheck colo.memcheck=8 colo.dirty=100,20';
const DISKS: DiskOptions[] = [{ id: 'disk0', sizeMiB: 64, format: 'qcow2' }];

export type Narrate = (line: string) => void;

/** Runs the demo; everything that it started has ended when it returns or throws. Needs root. */
export async function runDemo(narrate: Narrate): Promise<DemoResult> {
  const cleanup = new Cleanup();
  try {
    return await new Demo(narrate, cleanup).run();
  } finally {
    await cleanup.run();
  }
}

class Demo {
  readonly #narrate: Narrate;
  readonly #cleanup: Cleanup;
  readonly #beganAtMs = monotonicMs();

  constructor(narrate: Narrate, cleanup: Cleanup) {
    this.#narrate = narrate;
    this.#cleanup = cleanup;
  }

  async run(): Promise<DemoResult> {
    const network = this.#cleanup.own(await TestNetwork.create());
    const { primaryVm, standbyVm } = await this.#startVms(network);
    const { primary, secondary } = await this.#startAgents(primaryVm, standbyVm);
    const client = this.#cleanup.own(await StreamClient.connect(network));
    this.#say('a client reads the counter: n=1, n=2, n=3, ...');
    await primary.waitState('PROTECTED', 120_000);
    const before = await this.#watchPrimary(primary, client);
    const killedAtMs = this.#kill(primaryVm, primary);
    const first = await client.waitAfter(killedAtMs, 60_000);
    const failoverMs = Math.round(first.atMs - killedAtMs);
    this.#say(
      `the standby took over: ${failoverMs} ms after the kill the same connection brings n=${first.n}`,
    );
    await this.#watchStandby(secondary, client);
    const round = await checkMemory(network, 60_000);
    this.#say(`the guest has verified all of its checksummed memory (round ${round}): it is intact`);
    const disk = await readDisks(network, 60_000);
    this.#say(
      disk.mismatches === 0
        ? `and all of its disk against what its memory says it wrote (${disk.writes} writes): they are of one moment`
        : `but its disk isn't what its memory says: ${disk.firstMismatch}`,
    );
    return this.#result({ before, failoverMs, client, disk, qemu: await primaryVm.qemuVersion() });
  }

  async #startVms(network: TestNetwork): Promise<{ primaryVm: TestVm; standbyVm: TestVm }> {
    const options = async (name: string): Promise<VmOptions> => ({
      name,
      guest: 'linux',
      network,
      nics: [{ tap: await network.addTap() }],
      append: GUEST_APPEND,
    });
    this.#say(
      'a guest boots (256 MiB, Linux, software emulation, a qcow2 disk), with nothing special on its command line',
    );
    const primaryVm = this.#cleanup.own(await TestVm.start({ ...(await options('primary')), disks: DISKS }));
    await primaryVm.waitConsole('GUEST-READY', 120_000);
    this.#say('it runs; a second QEMU with the same devices, an empty raw disk and -S is to be its standby');
    const standbyVm = this.#cleanup.own(
      await TestVm.start({ ...(await options('standby')), disks: standbyDisks(DISKS), paused: true }),
    );
    return { primaryVm, standbyVm };
  }

  async #startAgents(
    primaryVm: TestVm,
    standbyVm: TestVm,
  ): Promise<{ primary: TestAgent; secondary: TestAgent }> {
    const secondary = this.#cleanup.own(
      await TestAgent.start('secondary', [
        ...['--vm', VM_NAME, '--qmp', standbyVm.qmpPath],
        ...['--listen', '127.0.0.1:0', '--witness', 'none'],
      ]),
    );
    const { listen } = await secondary.status();
    this.#say(`colo-agent secondary --vm ${VM_NAME} --qmp ... --listen ${listen} --tls ... --witness none`);
    const primary = this.#cleanup.own(
      await TestAgent.start('primary', [
        '--vm',
        VM_NAME,
        '--qmp',
        primaryVm.qmpPath,
        '--peer',
        String(listen),
        '--witness',
        'none',
      ]),
    );
    this.#say(`colo-agent primary --vm ${VM_NAME} --qmp ... --peer ${listen} --tls ... --witness none`);
    return { primary, secondary };
  }

  async #watchPrimary(primary: TestAgent, client: StreamClient): Promise<PrimaryStatus> {
    for (let second = 0; ; second++) {
      const status = (await primary.status()) as unknown as PrimaryStatus;
      const { state, epoch, pauseMs, dirtyPages } = status;
      this.#say(
        `primary ${state}, checkpoint ${epoch}, ${dirtyPages.last} dirty pages, pause ${pauseMs.last} ms (p50 ${pauseMs.p50}); client at n=${lastNumber(client)}`,
      );
      if (second === SECONDS_BEFORE) return status;
      await nextSecond(client);
    }
  }

  #kill(primaryVm: TestVm, primary: TestAgent): number {
    this.#say(`kill -9 ${primaryVm.pid} ${primary.pid}: the primary's QEMU and its agent`);
    const killedAtMs = monotonicMs();
    primaryVm.kill('SIGKILL');
    primary.kill('SIGKILL');
    return killedAtMs;
  }

  async #watchStandby(secondary: TestAgent, client: StreamClient): Promise<void> {
    for (let second = 0; second < SECONDS_AFTER; second++) {
      await nextSecond(client);
      const { state, epoch } = await secondary.status();
      this.#say(`standby ${state} since checkpoint ${epoch}; client at n=${lastNumber(client)}`);
    }
  }

  #result(seen: {
    before: PrimaryStatus;
    failoverMs: number;
    client: StreamClient;
    disk: DiskCheck;
    qemu: string;
  }): DemoResult {
    const { before, failoverMs, client, qemu } = seen;
    const { received, gaps, regressions } = client.check;
    const { writes, mismatches } = seen.disk;
    const { p50, p99, max } = before.pauseMs;
    const unbroken = gaps === 0 && regressions === 0 && client.ended === undefined;
    return {
      result: unbroken && mismatches === 0 ? 'ok' : 'failed',
      qemu,
      checkpoints: before.checkpoints,
      pauseMs: { p50, p99, max },
      failoverMs,
      stream: { received, gaps, regressions },
      disk: { writes, mismatches },
    };
  }

  #say(text: string): void {
    const seconds = ((monotonicMs() - this.#beganAtMs) / 1000).toFixed(1).padStart(6);
    this.#narrate(`${seconds} s  ${text}`);
  }
}

function lastNumber(client: StreamClient): number {
  return client.check.lines.at(-1)?.n ?? 0;
}

/** Until the client has got a line that is a second younger: what is shown is what the client has seen. */
async function nextSecond(client: StreamClient): Promise<void> {
  const atMs = monotonicMs() + 1000;
  await waitFor('line of the counter', 30_000, () => (client.check.lines.at(-1)?.atMs ?? 0) > atMs);
}
