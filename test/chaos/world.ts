/** Two hosts, a witness of three members, the guest's network with its clients and watchers: everything real, on this machine, in namespaces of its own. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { Cleanup } from '../../src/testbed/cleanup.ts';
import { pairedFolders } from '../../src/testbed/credentials.ts';
import { TestEtcd } from '../../src/testbed/etcd.ts';
import { TestHosts } from '../../src/testbed/hosts.ts';
import { TestNetwork } from '../../src/testbed/network.ts';
import { monotonicMs } from '../../src/testbed/wait.ts';
import { Clients } from './clients.ts';
import { Drills } from './drills.ts';
import { ChaosHost } from './host.ts';
import type { Journal } from './journal.ts';
import { OneRunner } from './one-runner.ts';
import type { VmHost } from './plan.ts';
import { Storage } from './storage.ts';
import { WallClock } from './wall-clock.ts';
import { FrameWatch, RecordWatch } from './watchers.ts';

const VM_NAME = 'chaos';
const PORT = 7700;
const MEMBERS = 3;
/** A checkpoint for each announcement would take most of a small machine. */
const INTERVALS = ['--min-interval', '50'];
/** Which of the two paired hosts each one is, whatever its agent is for at the time. */
const PAIRED = { north: 'primary', south: 'secondary' } as const;

interface Machine {
  storage: Storage;
  clock: WallClock;
}

export class World {
  readonly journal: Journal;
  readonly hosts: TestHosts;
  readonly etcd: TestEtcd;
  readonly north: ChaosHost;
  readonly south: ChaosHost;
  readonly clients: Clients;
  readonly drills: Drills;
  readonly oneRunner: OneRunner;
  /** Set by create(). */
  records!: RecordWatch;
  frames!: FrameWatch;
  readonly #network: TestNetwork;
  readonly #folder: string;
  readonly #hostOfTap = new Map<string, VmHost>();

  /** What it makes goes with `cleanup`, also when it fails in the middle. */
  static async create(cleanup: Cleanup, journal: Journal): Promise<World> {
    const folder = mkdtempSync(path.join(tmpdir(), 'colo-chaos-'));
    cleanup.add(() => rmSync(folder, { recursive: true }));
    const hosts = cleanup.own(await TestHosts.create());
    const etcd = cleanup.own(await TestEtcd.start({ members: MEMBERS, prefix: hosts.prefix('witness') }));
    const network = cleanup.own(await TestNetwork.create());
    const machine = async (name: VmHost) => ({
      storage: cleanup.own(await Storage.mount()),
      clock: await WallClock.create(folder, name),
    });
    const machines = { north: await machine('north'), south: await machine('south') };
    const world = new World(journal, hosts, etcd, network, machines, folder);
    for (const host of [world.north, world.south]) cleanup.add(() => host.end());
    await world.#watch(cleanup);
    return world;
  }

  private constructor(
    journal: Journal,
    hosts: TestHosts,
    etcd: TestEtcd,
    network: TestNetwork,
    machines: Record<VmHost, Machine>,
    folder: string,
  ) {
    this.journal = journal;
    this.hosts = hosts;
    this.etcd = etcd;
    this.#network = network;
    this.#folder = folder;
    this.clients = new Clients(network, journal);
    this.drills = new Drills(journal);
    this.north = this.#makeHost('north', machines.north);
    this.south = this.#makeHost('south', machines.south);
    this.oneRunner = new OneRunner(
      (tap) => this.#hostOfTap.get(tap) as VmHost,
      (host) => this.host(host).wentOnMs,
    );
  }

  host(name: VmHost): ChaosHost {
    return name === 'north' ? this.north : this.south;
  }

  other(name: VmHost): ChaosHost {
    return name === 'north' ? this.south : this.north;
  }

  /** Where the guest runs. A primary that the witness has named a successor of may still have its VM, and stand still. */
  get runner(): ChaosHost | undefined {
    const named = this.records.last?.primary;
    return [this.north, this.south].find(
      ({ name, runsGuest }) => runsGuest && (named === undefined || named === name),
    );
  }

  async #watch(cleanup: Cleanup): Promise<void> {
    const key = `/colo-agent/vm/${VM_NAME}`;
    const prefix = this.hosts.prefix('witness');
    this.records = cleanup.own(
      await RecordWatch.start(prefix, this.etcd.endpointsAt('127.0.0.1'), key, this.#folder),
    );
    this.frames = cleanup.own(
      await FrameWatch.start(this.#network, this.#folder, (burst) => {
        const breach = this.oneRunner.push(burst);
        if (breach !== null) this.journal.violate(breach);
      }),
    );
    cleanup.own(this.clients);
    await this.clients.listen();
  }

  #makeHost(name: VmHost, { storage, clock }: Machine): ChaosHost {
    return new ChaosHost({
      name,
      journal: this.journal,
      network: this.#network,
      storage,
      clock,
      prefix: this.hosts.prefix(name),
      args: this.#argsFor(name, storage),
      folder: this.#folder,
      onTap: (tap) => this.#hostOfTap.set(tap, name),
      onStandsBy: (tap) => this.oneRunner.standsBy(tap, monotonicMs()),
    });
  }

  /** Each can be either: the standby after a take-over, the primary after a drill. */
  #argsFor(name: VmHost, storage: Storage): string[] {
    const { hosts, etcd } = this;
    const other = name === 'north' ? 'south' : 'north';
    const endpoints = etcd.endpointsAt(hosts.address('witness', name)).join(',');
    const witness = ['--node', name, '--witness', endpoints, '--witness-timeout', '500'];
    const own = ['--state-dir', storage.stateFolder, '--tls', pairedFolders()[PAIRED[name]]];
    const common = ['--vm', VM_NAME, ...witness, ...own];
    const addresses = [
      '--peer',
      `${hosts.address(other, name)}:${PORT}`,
      '--listen',
      `${hosts.address(name, other)}:${PORT}`,
    ];
    return [...common, ...addresses, ...INTERVALS];
  }
}
