/** What became of one take-over, and where its time went: of what `colo-agent events --failover` shows. Plain data, as the daemon keeps it. */

/** Scripts rely on these names; fields are added, never renamed. */
export interface TakeOverRecord {
  /** VM and begin: web1-20261127T160312480Z. */
  id: string;
  vm: string;
  /** `given-up`: the VM goes on at the primary's, or nowhere. */
  outcome: 'took-over' | 'given-up';
  /** Why it came to that. */
  reason: string;
  /** What it was begun for. */
  cause: string;
  /** The generation that was won; null: none was. */
  generation: number | null;
  /** The checkpoint that was to be resumed. */
  epoch: number;
  /** Of the first sign: for a primary that fell silent, when it was last heard. RFC 3339, by this host's clock. */
  beganAt: string;
  /** Until the VM ran here, or until it was given up. */
  tookMs: number;
  decidedBy: Decision;
  /** In the order in which they began. */
  steps: TakeOverStep[];
}

/** `primary`: it has handed the VM over. `nobody`: there is no witness that could say no. Null: nothing was decided. */
export type Decision = 'witness' | 'person' | 'primary' | 'nobody' | null;

export interface TakeOverStep {
  what: string;
  /** After the first sign. */
  atMs: number;
  /** Null: it is a moment. */
  tookMs: number | null;
  detail: string;
}

/** One line, without the steps. */
export function summaryOf({ outcome, epoch, generation, tookMs, reason, cause }: TakeOverRecord): string {
  return outcome === 'took-over'
    ? `took over at checkpoint ${epoch} in generation ${generation}, in ${tookMs.toFixed(1)} ms: ${cause}`
    : `gave its take-over up after ${tookMs.toFixed(1)} ms: ${reason}`;
}
