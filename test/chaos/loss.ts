/** Whether a guest that nobody goes on with was lost rightly: only if nobody who lived could have it. Pure. */
import type { VmRecord } from '../../src/protocol/arbiter.ts';
import type { VmHost } from './plan.ts';

/** What was there when the running VM was last seen. */
export interface LastSeen {
  runner: VmHost;
  standby: VmHost;
  /** Which of the standby's agents it was. */
  incarnation: number;
  /** The generation of the checkpoint that it held; null: none. */
  checkpointOf: number | null;
}

export interface StandbyNow {
  incarnation: number;
  /** Since the last wave began. */
  storageWasFull: boolean;
}

export interface Verdict {
  rightly: boolean;
  why: string;
}

/** `record`: what the witness holds now; undefined: nothing. */
export function judgeLoss(record: VmRecord | undefined, seen: LastSeen | null, now: StandbyNow): Verdict {
  const rightly = (why: string) => ({ rightly: true, why });
  if (seen === null || record === undefined) return rightly('it was never protected');
  const { runner, standby, incarnation, checkpointOf } = seen;
  const { mode, primary, generation } = record;
  if (mode === 'alone' && primary === runner)
    return rightly(`${runner} ran it alone (generation ${generation}) when its VM died`);
  if (now.incarnation !== incarnation) return rightly(`the standby on ${standby} died, too`);
  if (mode === 'protected' && checkpointOf !== generation)
    return rightly(`the standby on ${standby} held no checkpoint of generation ${generation}`);
  if (now.storageWasFull) return rightly(`the storage of ${standby} was full when it was to take over`);
  return {
    rightly: false,
    why: `${standby} lives and held a checkpoint of generation ${checkpointOf}; the witness has ${JSON.stringify(record)}`,
  };
}
