/**
 * Whether the guest lives, and when it is rightly lost: only when nobody who lives could have gone on with it. Then a person's part is played: it is booted anew on the
 * host that the witness names, and clients connect again.
 */
import { monotonicMs } from '../../src/testbed/wait.ts';
import type { ChaosHost } from './host.ts';
import type { VmHost } from './plan.ts';
import type { World } from './world.ts';

/** Nobody has been able to go on for so long: every supervisor has looked meanwhile, and so has whoever reads the witness. */
const CERTAIN_MS = 3000;

const BOOTS_MAX = 3;

/** What was there when the running VM was last seen. */
interface LastSeen {
  runner: VmHost;
  standby: ChaosHost;
  incarnation: number;
  /** Of the checkpoint that the standby held. */
  checkpointOf: number | null;
}

export class GuestLife {
  /** Guests that were lost, with the reason why no standby could have it. */
  readonly losses: string[] = [];
  readonly #world: World;
  #lastSeen: LastSeen | null = null;
  #goneSinceMs: number | null = null;

  constructor(world: World) {
    this.#world = world;
  }

  /** Boots a guest on `name`, and connects its clients. */
  async begin(name: VmHost): Promise<void> {
    const { journal, clients } = this.#world;
    await this.#world.other(name).restart('secondary');
    await this.#world.host(name).restart('primary', () => clients.disconnect());
    await clients.connect();
    journal.note(`a guest was booted on ${name}`);
    this.#goneSinceMs = null;
  }

  /** To be called often, and not twice at a time. */
  async look(): Promise<void> {
    const { north, south } = this.#world;
    const runner = [north, south].find(({ runsGuest }) => runsGuest);
    if (runner !== undefined) {
      const standby = this.#world.other(runner.name);
      const { incarnation, checkpointOf } = standby;
      this.#lastSeen = { runner: runner.name, standby, incarnation, checkpointOf };
    }
    if (runner !== undefined || [north, south].some(({ mayTakeOver }) => mayTakeOver !== false)) {
      this.#goneSinceMs = null;
      return;
    }
    this.#goneSinceMs ??= monotonicMs();
    if (monotonicMs() - this.#goneSinceMs >= CERTAIN_MS) await this.#lost();
  }

  async #lost(): Promise<void> {
    const { records, journal } = this.#world;
    const [why, rightly] = this.#judge();
    if (!rightly) {
      journal.violate(`the guest is lost, and need not be: ${why}`);
      return;
    }
    journal.note(`the guest is lost: ${why}`);
    this.losses.push(why);
    // A fault may hit the guest as it boots.
    for (let tries = 1; this.#goneSinceMs !== null; tries++)
      await this.begin((records.last?.primary ?? 'north') as VmHost).catch((error: Error) => {
        if (tries === BOOTS_MAX) throw error;
        journal.note(`the guest doesn't come up: ${error.message.split('\n')[0]}`);
      });
  }

  /** The reason, and whether it is one. */
  #judge(): [string, boolean] {
    const record = this.#world.records.last;
    if (this.#lastSeen === null || record === undefined) return ['it was never protected', true];
    const { runner, standby, incarnation, checkpointOf } = this.#lastSeen;
    const seen = JSON.stringify({ ...this.#lastSeen, standby: standby.name, record });
    if (record.mode === 'alone' && record.primary === runner)
      return [`${runner} ran it alone (generation ${record.generation}) when its VM died`, true];
    if (standby.incarnation !== incarnation) return [`the standby on ${standby.name} died, too`, true];
    if (record.mode === 'protected' && checkpointOf !== record.generation)
      return [`the standby on ${standby.name} held no checkpoint of generation ${record.generation}`, true];
    if (standby.storageWasFull)
      return [`the storage of ${standby.name} was full when it was to take over`, true];
    return [seen, false];
  }
}
