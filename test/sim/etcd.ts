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
  /** What it shows in place of `entry`: it was emptied, restored from a backup, or it isn't the etcd that was meant. Nothing can be changed then. */
  private delusion: Entry | null = null;
  private readonly past: Entry[] = [{ revision: ABSENT_REVISION, record: null }];
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

  /** For a while. */
  forget(forMs: number): void {
    const { clock, random } = this.world;
    const { record } = random.pick(this.past);
    this.world.trace(`* the witness has forgotten all but ${JSON.stringify(record)}`);
    this.delusion = { revision: record === null ? ABSENT_REVISION : 'restored', record };
    clock.after(forMs, () => {
      this.delusion = null;
      this.entry = { revision: String(++this.revisions), record: this.entry.record };
    });
  }

  private arrive(side: 0 | 1, request: Request): Entry | null {
    if (this.down || this.cutOff[side]) return null;
    if (this.delusion !== null) return this.delusion;
    if (request.type === 'transact' && request.expected === this.entry.revision) {
      this.entry = { revision: String(++this.revisions), record: request.record };
      this.past.push(this.entry);
      this.world.trace(`* the witness has ${JSON.stringify(request.record)}`);
    }
    return this.entry;
  }
}

/** `late`: arrives when nobody expects it any more. `unheard`: it has happened, and nobody is told. */
const FAULTS = ['lost', 'late', 'twice', 'slow', 'unheard'] as const;
