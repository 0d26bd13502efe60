/**
 * Whether the guest lives, and when it is rightly lost: only when nobody who lives could have gone on with it. Then a person's part is played: it is booted anew on the
 * host that the witness names, and clients connect again.
 */
import { monotonicMs } from '../../src/testbed/wait.ts';
import { judgeLoss, type LastSeen } from './loss.ts';
import type { VmHost } from './plan.ts';
import type { World } from './world.ts';

/** Nobody has been able to go on for so long: every supervisor has looked meanwhile, and so has whoever reads the witness. */
const CERTAIN_MS = 3000;

const BOOTS_MAX = 3;

export class GuestLife {
  /** Guests that were lost, with the reason why no standby could have it. */
  readonly losses: string[] = [];
  /** When a guest came up last; infinity: one is booting. */
  bornMs = Number.POSITIVE_INFINITY;
  readonly #world: World;
  #lastSeen: LastSeen | null = null;
  #goneSinceMs: number | null = null;

  constructor(world: World) {
    this.#world = world;
  }

  /** Boots a guest on `name`, and connects its clients. */
  async begin(name: VmHost): Promise<void> {
    const { journal, clients } = this.#world;
    this.bornMs = Number.POSITIVE_INFINITY;
    await this.#world.other(name).restart('secondary');
    await this.#world.host(name).restart('primary', () => clients.disconnect());
    await clients.connect();
    journal.note(`a guest was booted on ${name}`);
    this.#goneSinceMs = null;
    this.bornMs = monotonicMs();
  }

  /** To be called often, and not twice at a time. */
  async look(): Promise<void> {
    const { north, south, runner } = this.#world;
    if (runner !== undefined) {
      const { name: standby, incarnation, checkpointOf } = this.#world.other(runner.name);
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
    const { records, journal, oneRunner } = this.#world;
    const standby = this.#world.host(this.#lastSeen?.standby ?? 'south');
    const { why, rightly } = judgeLoss(records.last, this.#lastSeen, standby);
    if (!rightly) {
      journal.violate(`the guest is lost, and need not be: ${why}`);
      return;
    }
    journal.note(`the guest is lost: ${why}`);
    this.losses.push(why);
    // A fault may hit the guest as it boots.
    for (let tries = 1; this.#goneSinceMs !== null; tries++) {
      const name = (records.last?.primary ?? 'north') as VmHost;
      await this.begin(name).catch((error: Error) => {
        if (tries === BOOTS_MAX) throw error;
        journal.note(`the guest doesn't come up: ${error.message.split('\n')[0]}`);
        oneRunner.giveUp(this.#world.host(name).tap);
      });
    }
  }
}
