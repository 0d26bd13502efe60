/**
 * Three hosts on one machine, as network namespaces: north and south, which protect a VM, and the witness. Each pair has a link of its own, so that any one can be
 * cut alone, in silence: connections over it get no word of it.
 */
import { randomBytes } from 'node:crypto';
import { run } from './child.ts';

export type HostName = 'north' | 'south' | 'witness';
export type LinkName = 'north-south' | 'north-witness' | 'south-witness';

interface Link {
  name: LinkName;
  /** 10.78.SUBNET.1 on the first of its hosts, .2 on the second. */
  subnet: number;
}

const LINKS: Link[] = [
  { name: 'north-south', subnet: 0 },
  { name: 'north-witness', subnet: 1 },
  { name: 'south-witness', subnet: 2 },
];

export class TestHosts {
  readonly #namespaces: Record<HostName, string>;

  private constructor() {
    // Named as network.ts names its own, which removes what killed test runs have left.
    const name = () => `colo-test-${process.pid}-${randomBytes(4).toString('hex')}`;
    this.#namespaces = { north: name(), south: name(), witness: name() };
  }

  static async create(): Promise<TestHosts> {
    const hosts = new TestHosts();
    try {
      for (const namespace of Object.values(hosts.#namespaces)) {
        await run('ip', 'netns', 'add', namespace);
        await run('ip', '-netns', namespace, 'link', 'set', 'lo', 'up');
      }
      for (const link of LINKS) await hosts.#connect(link);
    } catch (error) {
      await hosts.destroy();
      throw error;
    }
    return hosts;
  }

  /** The command that, put before another, runs that one on `host`; it replaces itself by exec. */
  prefix(host: HostName): string[] {
    return ['ip', 'netns', 'exec', this.#namespaces[host]];
  }

  /** Of `host`, on its link with `other`. */
  address(host: HostName, other: HostName): string {
    const link = LINKS.find(({ name }) => name === `${host}-${other}` || name === `${other}-${host}`) as Link;
    return addressOn(link, link.name.startsWith(host) ? 0 : 1);
  }

  async cut(...links: LinkName[]): Promise<void> {
    for (const link of links) await this.#set(link, 'down');
  }

  async mend(...links: LinkName[]): Promise<void> {
    for (const link of links) await this.#set(link, 'up');
  }

  /** As soon as the last process in them has ended. */
  async destroy(): Promise<void> {
    const existing = await run('ip', 'netns', 'list');
    for (const namespace of Object.values(this.#namespaces)) {
      if (existing.includes(namespace)) await run('ip', 'netns', 'delete', namespace);
    }
  }

  async #connect(link: Link): Promise<void> {
    const [first, second] = link.name.split('-') as [HostName, HostName];
    const [one, other] = [this.#namespaces[first], this.#namespaces[second]];
    const peer = ['type', 'veth', 'peer', 'name', link.name, 'netns', other];
    await run('ip', '-netns', one, 'link', 'add', link.name, ...peer);
    for (const [index, namespace] of [one, other].entries()) {
      await run('ip', '-netns', namespace, 'addr', 'add', `${addressOn(link, index)}/24`, 'dev', link.name);
      await run('ip', '-netns', namespace, 'link', 'set', link.name, 'up');
    }
  }

  /** Connections over it aren't told: what they send finds no way, and is tried again. */
  async #set(name: LinkName, state: 'up' | 'down'): Promise<void> {
    for (const host of name.split('-') as HostName[])
      await run('ip', '-netns', this.#namespaces[host], 'link', 'set', name, state);
  }
}

function addressOn({ subnet }: Link, index: number): string {
  return `10.78.${subnet}.${index + 1}`;
}
