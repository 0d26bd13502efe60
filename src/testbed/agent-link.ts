/** A network between two agents that can be cut: a namespace for each of them, and a cable. Nothing of the host's network is touched. */
import { randomBytes } from 'node:crypto';
import { run } from './child.ts';

const ADDRESSES = { primary: '10.78.0.1', secondary: '10.78.0.2' } as const;
const DEVICE = 'link0';

type Side = keyof typeof ADDRESSES;

export class AgentLink {
  readonly #name: string;

  private constructor(name: string) {
    this.#name = name;
  }

  static async create(): Promise<AgentLink> {
    // The process's id in the name lets a later run remove what a killed one has left (network.ts).
    const link = new AgentLink(`colo-test-${process.pid}-${randomBytes(3).toString('hex')}`);
    await run('ip', 'netns', 'add', link.#namespace('primary'));
    try {
      await run('ip', 'netns', 'add', link.#namespace('secondary'));
      await link.#plugIn();
    } catch (error) {
      await link.destroy();
      throw error;
    }
    return link;
  }

  /** The secondary's address in the network. */
  get address(): string {
    return ADDRESSES.secondary;
  }

  /** What, put before a command, runs it on this side. */
  prefix(side: Side): string[] {
    return ['ip', 'netns', 'exec', this.#namespace(side)];
  }

  /** Pulls the cable: nothing arrives any more, and nobody is told. */
  async cut(): Promise<void> {
    // A queue that has no place: unlike a device that is down, nothing tells the senders.
    for (const side of ['primary', 'secondary'] as const) await this.#tc(side, 'pfifo', 'limit', '0');
  }

  /** Takes the device of one side down, as a switch or a driver that dies does. */
  async takeDown(side: Side): Promise<void> {
    await run('ip', '-netns', this.#namespace(side), 'link', 'set', DEVICE, 'down');
  }

  /** The cable carries so much, with a queue of `queueMs`. */
  async limit(megabitsPerSecond: number, queueMs: number): Promise<void> {
    for (const side of ['primary', 'secondary'] as const) {
      const rate = `${megabitsPerSecond}mbit`;
      await this.#tc(side, 'tbf', 'rate', rate, 'burst', '128kb', 'latency', `${queueMs}ms`);
    }
  }

  /** The devices go with the namespaces, as soon as the last process in them has ended. */
  async destroy(): Promise<void> {
    for (const side of ['primary', 'secondary'] as const)
      await run('ip', 'netns', 'delete', this.#namespace(side)).catch(() => {});
  }

  async #plugIn(): Promise<void> {
    const [one, other] = [this.#namespace('primary'), this.#namespace('secondary')];
    await run(
      'ip',
      '-netns',
      one,
      'link',
      'add',
      DEVICE,
      'type',
      'veth',
      'peer',
      'name',
      DEVICE,
      'netns',
      other,
    );
    for (const side of ['primary', 'secondary'] as const) {
      const namespace = this.#namespace(side);
      await run('ip', '-netns', namespace, 'addr', 'add', `${ADDRESSES[side]}/24`, 'dev', DEVICE);
      await run('ip', '-netns', namespace, 'link', 'set', 'lo', 'up');
      await run('ip', '-netns', namespace, 'link', 'set', DEVICE, 'up');
    }
  }

  async #tc(side: Side, ...discipline: string[]): Promise<void> {
    await run(
      'tc',
      '-netns',
      this.#namespace(side),
      'qdisc',
      'replace',
      'dev',
      DEVICE,
      'root',
      ...discipline,
    );
  }

  #namespace(side: Side): string {
    return `${this.#name}${side === 'primary' ? '' : '00'}`;
  }
}
