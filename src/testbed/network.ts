/**
 * A network of the test's own: a network namespace with two bridges, into which QEMUs and clients are started. Nothing of the host's network is touched.
 * The namespace has 10.77.0.1 on br0 and 10.77.1.1 on br1; guests take 10.77.0.2 and 10.77.1.2 (guest/init).
 */
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { run } from './child.ts';

export const GUEST_ADDRESS = '10.77.0.2';

export interface TapOptions {
  /** Which bridge: 0 or 1. */
  bridge?: 0 | 1;
  /** Numeric id of the user who may open it; only root without it. */
  uid?: number;
}

export class TestNetwork {
  readonly namespace: string;
  #taps = 0;

  private constructor(namespace: string) {
    this.namespace = namespace;
  }

  static async create(): Promise<TestNetwork> {
    await removeLeftovers();
    const network = new TestNetwork(`colo-test-${process.pid}-${randomBytes(3).toString('hex')}`);
    await run('ip', 'netns', 'add', network.namespace);
    try {
      await network.#setUp();
    } catch (error) {
      await network.destroy();
      throw error;
    }
    return network;
  }

  async #setUp(): Promise<void> {
    await this.#ip('link', 'set', 'lo', 'up');
    for (const bridge of [0, 1]) {
      const name = `br${bridge}`;
      // A frame must pass from the first moment on: no forwarding delay, no snooping that first has to learn of groups.
      // An address of its own: a bridge without one takes the lowest of its ports', which changes under the guest's ARP cache with every new tap.
      const address = ['address', `02:00:0a:4d:0${bridge}:01`];
      await this.#ip(
        'link',
        'add',
        name,
        ...address,
        'type',
        'bridge',
        'forward_delay',
        '0',
        'mcast_snooping',
        '0',
      );
      await this.#ip('addr', 'add', `10.77.${bridge}.1/24`, 'dev', name);
      await this.#ip('link', 'set', name, 'up');
    }
  }

  /** Adds a tap device to a bridge and returns its name. */
  async addTap({ bridge = 0, uid }: TapOptions = {}): Promise<string> {
    const name = `tap${this.#taps++}`;
    await this.#ip('tuntap', 'add', name, 'mode', 'tap', ...(uid === undefined ? [] : ['user', String(uid)]));
    await this.#ip('link', 'set', name, 'master', `br${bridge}`, 'up');
    return name;
  }

  /** The command that, put before another, runs that one inside; it replaces itself by exec, so the process keeps its id. */
  get prefix(): string[] {
    return ['ip', 'netns', 'exec', this.namespace];
  }

  /** Runs a command inside to its end and returns its output. */
  async exec(...command: string[]): Promise<string> {
    const [file = '', ...args] = [...this.prefix, ...command];
    return run(file, ...args);
  }

  /** The devices in it go with it, as soon as the last process in it has ended. */
  async destroy(): Promise<void> {
    await run('ip', 'netns', 'delete', this.namespace);
  }

  async #ip(...args: string[]): Promise<void> {
    await run('ip', '-netns', this.namespace, ...args);
  }
}

/** Namespaces of test runs that were killed before they could clean up: their names carry the id of a process that is gone. */
async function removeLeftovers(): Promise<void> {
  const names = (await run('ip', 'netns', 'list')).matchAll(/^colo-test-(\d+)-[0-9a-f]+/gm);
  for (const [name, pid] of names) {
    if (existsSync(`/proc/${pid}`)) continue;
    // Another run may have been faster; what counts is that it is gone.
    await run('ip', 'netns', 'delete', name).catch((error: unknown) => {
      if (existsSync(`/run/netns/${name}`)) throw error;
    });
  }
}
