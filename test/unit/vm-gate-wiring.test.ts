import { describe, expect, it } from 'vitest';
import type { OutputGate } from '../../src/native/binding.ts';
import { findLeftovers, handOver, install, removeLeftovers } from '../../src/vm/gate-wiring.ts';
import type { Nic } from '../../src/vm/nics.ts';
import { type Answer, FakeQmp } from './vm-fakes.ts';

const nic = (id: string, netdev: string | null): Nic => ({
  id,
  model: 'e1000',
  mac: '52:54:00:00:00:01',
  netdev: netdev === null ? null : { id: netdev, type: 'tap', queues: 1 },
  ungateable: null,
});

type Named = Record<string, unknown>;

/** QEMU's objects and chardevs as far as the wiring makes and removes them; descriptors are numbers that are only counted. */
class World {
  readonly filters: string[] = [];
  readonly chardevs: string[] = ['charmonitor'];
  readonly openFds = new Set<number>();
  readonly log: string[];
  readonly qmp: FakeQmp;
  flushes = [true, true];
  #nextFd = 100;

  constructor(overrides: Record<string, Answer> = {}) {
    this.qmp = new FakeQmp({
      getfd: {},
      'chardev-add': ({ id }: Named) => void this.chardevs.push(String(id)),
      'chardev-remove': ({ id }: Named) => this.#remove(this.chardevs, String(id)),
      'object-add': ({ id }: Named) => void this.filters.push(String(id)),
      'object-del': ({ id }: Named) => this.#remove(this.filters, String(id)),
      'qom-list': () => [
        { name: 'type', type: 'string' },
        { name: 'm0', type: 'child<memory-backend-ram>' },
        ...this.filters.map((name) => ({ name, type: 'child<filter-redirector>' })),
      ],
      'query-chardev': () => this.chardevs.map((label) => ({ label, filename: 'unix' })),
      ...overrides,
    } satisfies Record<string, Answer>);
    this.log = this.qmp.calls;
  }

  readonly native = {
    streamSocketPair: (): [number, number] => {
      const pair: [number, number] = [this.#nextFd++, this.#nextFd++];
      for (const fd of pair) this.openFds.add(fd);
      return pair;
    },
    closeFd: (fd: number) => {
      if (!this.openFds.delete(fd)) throw new Error(`descriptor ${fd} closed twice`);
    },
  };

  readonly gate = {
    addPort: (held: number, release: number) => {
      this.openFds.delete(held);
      this.openFds.delete(release);
      this.log.push(`gate.addPort ${held} ${release}`);
      return 0;
    },
    open: () => void this.log.push('gate.open'),
    flush: async () => {
      this.log.push('gate.flush');
      return this.flushes.shift();
    },
  } as unknown as OutputGate;

  /** What changed something, with the parts of names that tests can't know taken out. */
  changes(): string[] {
    const changes = this.log.filter((call) => !/^(qom-list|query-|getfd)/.test(call));
    return changes.map((call) => call.replace(/colo-gate-\d+-\d+-/, 'gate-'));
  }

  install(nics: Nic[]) {
    return install(this.qmp.client, nics, this.gate, this.native);
  }

  #remove(list: string[], id: string): unknown {
    const index = list.indexOf(id);
    if (index < 0) return new Error(`${id} not found`);
    return list.splice(index, 1);
  }
}

describe('install', () => {
  it('makes the injecting filter before the capturing one, and skips NICs that nothing is connected to', async () => {
    const world = new World();
    const { ports } = await world.install([nic('net0', 'n0'), nic('net1', null), nic('net2', 'n2')]);
    expect(ports.map(({ netdev }) => netdev)).toEqual(['n0', 'n2']);
    expect(world.changes()).toEqual([
      ...['chardev-add gate-0-held', 'chardev-add gate-0-release', 'gate.addPort 100 102'],
      ...['object-add gate-0-release', 'object-add gate-0-held'],
      ...['chardev-add gate-1-held', 'chardev-add gate-1-release', 'gate.addPort 104 106'],
      ...['object-add gate-1-release', 'object-add gate-1-held'],
    ]);
    expect(world.openFds.size).toBe(0);
  });

  it('never uses a name twice', async () => {
    const world = new World();
    const first = await world.install([nic('net0', 'n0')]);
    const second = await world.install([nic('net0', 'n0')]);
    expect(second.ports[0]?.held).not.toBe(first.ports[0]?.held);
  });

  it.each(['getfd', 'chardev-add', 'object-add'])(
    'undoes everything when %s fails at any moment',
    async (command) => {
      const count = (world: World) => world.log.filter((call) => call.startsWith(command)).length;
      const complete = new World();
      await complete.install([nic('net0', 'n0'), nic('net1', 'n1')]);
      for (let failing = 1; failing <= count(complete); failing += 1) {
        const world: World = new World();
        const original = world.qmp.answers[command];
        world.qmp.answers[command] = (args: Named) => {
          if (count(world) === failing) return new Error('refused');
          return typeof original === 'function' ? original(args) : original;
        };
        await expect(world.install([nic('net0', 'n0'), nic('net1', 'n1')])).rejects.toThrow('refused');
        expect(world.filters).toEqual([]);
        expect(world.chardevs).toEqual(['charmonitor']);
        expect(world.openFds.size).toBe(0);
      }
    },
  );
});

describe('handOver', () => {
  it('lets the bulk out while the VM runs, then changes the way, in order', async () => {
    const world = new World();
    const wiring = await world.install([nic('net0', 'n0'), nic('net1', 'n1')]);
    world.log.length = 0;
    await handOver(world.qmp.client, wiring, world.gate, async () => world.log.push('stop'));
    expect(world.changes()).toEqual([
      ...[
        'gate.open',
        'gate.flush',
        'stop',
        'object-del gate-0-held',
        'object-del gate-1-held',
        'gate.flush',
      ],
      ...['object-del gate-0-release', 'object-del gate-1-release'],
      ...['gate-0-held', 'gate-1-held', 'gate-0-release', 'gate-1-release'].map(
        (name) => `chardev-remove ${name}`,
      ),
    ]);
  });

  it('takes everything off even when QEMU does not take all frames back, and says so', async () => {
    const world = new World();
    const wiring = await world.install([nic('net0', 'n0')]);
    world.flushes = [false, false];
    await expect(handOver(world.qmp.client, wiring, world.gate)).rejects.toThrow(
      /did not take all held frames/,
    );
    expect(world.filters).toEqual([]);
    expect(world.chardevs).toEqual(['charmonitor']);
  });

  it('copes with a netdev that was unplugged, filters and all', async () => {
    const world = new World();
    const wiring = await world.install([nic('net0', 'n0'), nic('net1', 'n1')]);
    world.filters.splice(0, 2);
    await handOver(world.qmp.client, wiring, world.gate);
    expect(world.filters).toEqual([]);
  });
});

describe('leftovers', () => {
  it('are told by their names and removed, capturing filters first', async () => {
    const world = new World();
    world.filters.push('colo-gate-7-1-0-release', 'colo-gate-7-1-0-held', 'users-filter');
    world.chardevs.push('colo-gate-7-1-0-release', 'colo-gate-7-1-0-held');
    expect((await findLeftovers(world.qmp.client)).gate).toBe(true);
    world.log.length = 0;
    await removeLeftovers(world.qmp.client);
    expect(world.changes().slice(0, 2)).toEqual(['object-del gate-0-held', 'object-del gate-0-release']);
    expect(world.filters).toEqual(['users-filter']);
    expect(world.chardevs).toEqual(['charmonitor']);
    expect(await findLeftovers(world.qmp.client)).toEqual({ gate: false, filters: [], chardevs: [] });
  });
});
