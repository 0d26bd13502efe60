/** The witness of the world: one key, compared and put as etcd does, behind a network that loses, delays and repeats. */
import { ABSENT_REVISION, type ArbiterEffect, type Entry } from '../../src/protocol/arbiter.ts';
import type { World } from './world.ts';

type Request = Extract<ArbiterEffect, { type: 'read' | 'transact' }>;

/** After this a client gives an answer up. */
const TIMEOUT_MS = 60;

export class Etcd {
  entry: Entry = { revision: ABSENT_REVISION, record: null };
  /** The majority is gone. */
  down = false;
  /** By side: out of reach. */
  readonly cutOff: [boolean, boolean] = [false, false];
  private readonly world: World;
  private revisions = 0;

  constructor(world: World) {
    this.world = world;
  }

  /** `answer` is called once: with what is there, or null when no answer came in time. */
  request(side: 0 | 1, request: Request, answer: (entry: Entry | null) => void): void {
    const { clock, random, options, calm } = this.world;
    const fault = !calm && random.chance(options.witnessFaults) ? random.pick(FAULTS) : 'none';
    if (fault === 'twice' || fault === 'late')
      clock.after(random.between(5, 1500), () => this.arrive(side, request));
    if (fault === 'late' || fault === 'lost') {
      clock.after(TIMEOUT_MS, () => answer(null));
      return;
    }
    clock.after(random.between(0.1, fault === 'slow' ? 50 : 3), () => {
      const entry = this.arrive(side, request);
      const heard = entry !== null && fault !== 'unheard';
      clock.after(heard ? random.between(0.1, 3) : TIMEOUT_MS, () => answer(heard ? entry : null));
    });
  }

  private arrive(side: 0 | 1, request: Request): Entry | null {
    if (this.down || this.cutOff[side]) return null;
    if (request.type === 'transact' && request.expected === this.entry.revision) {
      this.entry = { revision: String(++this.revisions), record: request.record };
      this.world.trace(`* the witness has ${JSON.stringify(request.record)}`);
    }
    return this.entry;
  }
}

/** `late`: arrives when nobody expects it any more. `unheard`: it has happened, and nobody is told. */
const FAULTS = ['lost', 'late', 'twice', 'slow', 'unheard'] as const;
