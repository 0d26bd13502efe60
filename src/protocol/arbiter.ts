/**
 * Who may run: one record per VM at the witness, changed only by transactions that compare its revision (docs/arbitration.md). Pure, like the other
 * machines: the shell carries requests to the witness and brings its answers.
 *
 * INVARIANT 4 rests on these rules:
 * - A claim is won when the witness holds the record with the claim's own id, and not before. Of all transactions that compare one revision at most one ever
 *   succeeds, however late the others arrive.
 * - A transaction without an answer may have happened, and may still happen: the very same one is tried again. When that fails, the record has moved on; if it
 *   has our id, the first attempt was it; if not, no attempt can succeed any more, and only then is a new decision taken, on the new revision.
 * - A claim is lost by what the witness answered after the claim was made, never by what is remembered; and only by a record that a real winner must have left: of a
 *   generation that can't have been won without this host's losing. One that is gone, that is older than what this host knows, or that names a stranger decides nothing:
 *   a VM isn't destroyed, a gate isn't opened and a checkpoint isn't given up for an etcd that was emptied, restored or mistaken for another.
 */
import { GENERATION_MAX } from './messages.ts';

/** What the witness holds of a VM. */
export interface VmRecord {
  format: 1;
  generation: number;
  /**
   * `alone`: the primary may run with its gate open, and nobody may promote. `protected`: nothing leaves the primary that the secondary hasn't
   * confirmed; either may take the next generation, alone.
   */
  mode: 'alone' | 'protected';
  /** What hosts call themselves. */
  primary: string;
  secondary: string | null;
  /** 32 hex digits, of the claim that wrote this. */
  claim: string;
}

export type Claim =
  /** The primary, to run by itself, in a generation of its own that is at least `atLeast`. */
  | { kind: 'alone'; atLeast: number }
  /** The primary that has won `generation` alone: from now on `secondary` may take over. */
  | { kind: 'protected'; generation: number; secondary: string }
  /** The secondary, with a checkpoint of `primary`'s `generation`. */
  | { kind: 'take-over'; generation: number; primary: string }
  /** Whichever of them, at a person's word, in a generation of its own that is at least `atLeast`: whatever the record says, or where there is none. */
  | { kind: 'seize'; atLeast: number };

/** So long a person's word waits to be written down before it is acted on all the same. */
export const SEIZE_MS = 5000;

/** `revision` is opaque; ABSENT_REVISION and no record: there is none. */
export interface Entry {
  revision: string;
  record: VmRecord | null;
}

export const ABSENT_REVISION = '0';

export type ArbiterEvent = {
  nowMs: number;
} /** `id`: 32 random hex digits, new for each. Takes the place of a claim before. */ & (
  | { type: 'ask'; claim: Claim; id: string }
  /** Nobody wants the claim any more. It may still be won; whoever wants to know asks again. */
  | { type: 'withdraw' }
  /** Learn what is there while nobody is in a hurry: a claim that knows the revision takes one round trip. */
  | { type: 'look' }
  /** The answers to `read` and `transact`. `entry` after a transaction: what is there now. */
  | { type: 'answer'; request: number; entry: Entry }
  /** No answer, or one that can't be understood. */
  | { type: 'no-answer'; request: number; reason: string }
  | { type: 'tick' }
);

export type ArbiterEffect =
  /** Linearisable. */
  | { type: 'read'; request: number }
  /** Put `record` if the revision is still `expected`; otherwise read. */
  | { type: 'transact'; request: number; expected: string; record: VmRecord }
  /** To be made durable on this host before anybody acts on it. */
  | { type: 'won'; claim: Claim; generation: number }
  /** Somebody else runs it: `holder`. */
  | { type: 'lost'; claim: Claim; holder: VmRecord }
  /** Seen by a look: another host has won a newer generation than the one that this host has won last. */
  | { type: 'superseded'; holder: VmRecord }
  /** For now, or the answer decides nothing; it goes on trying until it is won, lost or withdrawn. */
  | { type: 'unanswered'; claim: Claim; reason: string };

/** What a host knows of its VM's generations when its agent starts; 0: nothing. */
export interface Memory {
  /** The newest that it has won itself, or seen as a standby. */
  seen: number;
  /** The newest that it has won itself. */
  won: number;
}

/** `put`: what the claim makes of the record. `doubt`: why the record decides nothing, and what to do. */
type Verdict = { put: VmRecord } | { doubt: string } | 'lost';

const RETRY_MIN_MS = 100;
const RETRY_MAX_MS = 2000;

interface Attempt {
  claim: Claim;
  id: string;
  /** Not to be judged lost by an answer to an older request. */
  firstRequest: number;
  /** The transaction that may have happened, until it is known to have or to be impossible. */
  transaction: { expected: string; record: VmRecord } | null;
  request: number;
  retryAtMs: number | null;
  retryMs: number;
}

export class Arbiter {
  private readonly node: string;
  private readonly memory: Memory;
  /** The other end of the last protection that was claimed: besides this host only it can win the generation after. */
  private peer: string | null = null;
  /** What was last seen; null: nothing yet. */
  private known: Entry | null = null;
  private attempt: Attempt | null = null;
  private requests = 0;
  /** Looks that were begun before the last claim was settled are older than it. */
  private looksFrom = 0;
  private nowMs = 0;
  private effects: ArbiterEffect[] = [];

  /** `node`: what this host calls itself. */
  constructor(node: string, memory: Memory = { seen: 0, won: 0 }) {
    this.node = node;
    this.memory = { ...memory };
  }

  get nextTimepointMs(): number | null {
    return this.attempt?.retryAtMs ?? null;
  }

  /** What the witness held when it was last heard; null: it never was, or it holds nothing. */
  get record(): VmRecord | null {
    return this.known?.record ?? null;
  }

  step(event: ArbiterEvent): ArbiterEffect[] {
    this.nowMs = event.nowMs;
    switch (event.type) {
      case 'ask':
        this.onAsk(event.claim, event.id);
        break;
      case 'withdraw':
        this.settled();
        break;
      case 'look':
        if (this.attempt === null) this.read();
        break;
      case 'answer':
        this.onAnswer(event.request, event.entry);
        break;
      case 'no-answer':
        this.onNoAnswer(event.request, event.reason);
        break;
      case 'tick':
        this.onTick();
        break;
    }
    const { effects } = this;
    this.effects = [];
    return effects;
  }

  private onAsk(claim: Claim, id: string): void {
    const firstRequest = this.requests + 1;
    const attempt = { claim, id, firstRequest, transaction: null, request: 0, retryAtMs: null };
    this.attempt = { ...attempt, retryMs: RETRY_MIN_MS };
    if (claim.kind === 'protected') this.peer = claim.secondary;
    // With what is known already it is one round trip: if the record has changed meanwhile, the transaction fails and says how.
    const verdict = this.known === null ? 'lost' : this.judge(this.attempt, this.known.record);
    if (this.known === null || verdict === 'lost' || 'doubt' in verdict) this.attempt.request = this.read();
    else this.transact(this.attempt, this.known.revision, verdict.put);
  }

  private onAnswer(request: number, entry: Entry): void {
    const { attempt } = this;
    // Revisions only grow, but for a record that was removed: an older answer can be overtaken by a newer one, and that does no harm, because what is known is
    // only ever compared.
    this.known = entry;
    if (attempt === null) this.onLook(request, entry);
    if (attempt === null || request < attempt.firstRequest) return;
    if (entry.record?.claim === attempt.id) this.won(attempt, entry.record);
    else if (request === attempt.request) this.decide(attempt, entry);
  }

  private onLook(request: number, { record }: Entry): void {
    const { seen, won } = this.memory;
    if (request < this.looksFrom || record === null || won === 0 || won < seen) return;
    if (record.primary !== this.node && this.isNext(record, won, this.peer))
      this.effects.push({ type: 'superseded', holder: record });
  }

  private settled(): void {
    this.attempt = null;
    this.looksFrom = this.requests + 1;
  }

  /** The record isn't ours; and a transaction that has been answered so can't succeed any more. */
  private decide(attempt: Attempt, entry: Entry): void {
    attempt.transaction = null;
    const verdict = this.judge(attempt, entry.record);
    if (verdict === 'lost' && entry.record !== null) {
      this.settled();
      this.effects.push({ type: 'lost', claim: attempt.claim, holder: entry.record });
    } else if (verdict !== 'lost' && 'put' in verdict) {
      this.transact(attempt, entry.revision, verdict.put);
    } else if (verdict !== 'lost') {
      this.retryLater(attempt, verdict.doubt);
    }
  }

  private won({ claim }: Attempt, { generation }: VmRecord): void {
    this.settled();
    this.memory.seen = Math.max(this.memory.seen, generation);
    this.memory.won = this.memory.seen;
    this.effects.push({ type: 'won', claim, generation });
  }

  private onNoAnswer(request: number, reason: string): void {
    const { attempt } = this;
    if (attempt !== null && request === attempt.request) this.retryLater(attempt, reason);
  }

  private retryLater(attempt: Attempt, reason: string): void {
    attempt.retryAtMs = this.nowMs + attempt.retryMs;
    attempt.retryMs = Math.min(2 * attempt.retryMs, RETRY_MAX_MS);
    this.effects.push({ type: 'unanswered', claim: attempt.claim, reason });
  }

  private onTick(): void {
    const { attempt } = this;
    if (attempt === null || attempt.retryAtMs === null || this.nowMs < attempt.retryAtMs) return;
    attempt.retryAtMs = null;
    const { transaction } = attempt;
    if (transaction === null) attempt.request = this.read();
    else this.transact(attempt, transaction.expected, transaction.record);
  }

  private judge({ claim, id }: Attempt, current: VmRecord | null): Verdict {
    const alone = { format: 1, mode: 'alone', primary: this.node, secondary: null, claim: id } as const;
    if (claim.kind === 'seize') return { put: { ...alone, generation: this.seized(claim.atLeast, current) } };
    const known = claim.kind === 'alone' ? this.memory.seen : claim.generation;
    if (current === null) {
      if (claim.kind === 'alone' && known === 0) return { put: { ...alone, generation: claim.atLeast } };
      return doubt(`has no record of this VM, and this host knows of generation ${known}`);
    }
    if (current.generation < known)
      return doubt(`has generation ${current.generation}, and this host knows of ${known} already`);
    const mine = current.primary === this.node;
    switch (claim.kind) {
      case 'alone':
        if (mine) return { put: { ...alone, generation: Math.max(claim.atLeast, current.generation + 1) } };
        break;
      case 'protected': {
        const { generation, secondary } = claim;
        if (mine && current.mode === 'alone' && current.generation === generation)
          return { put: { ...alone, mode: 'protected', generation, secondary } };
        // An older transaction of this host has come in between: the session's end brings a new claim.
        if (mine) return 'lost';
        break;
      }
      case 'take-over': {
        const { generation, primary } = claim;
        const ours = current.mode === 'protected' && current.secondary === this.node;
        if (ours && current.primary === primary && current.generation === generation)
          return { put: { ...alone, generation: generation + 1 } };
        if (current.primary === primary && current.mode === 'alone' && current.generation === generation)
          return doubt(`names ${describe(current)}: it wasn't told that this standby holds a checkpoint`);
        break;
      }
    }
    return this.isWon(claim, current) ? 'lost' : doubt(`names ${describe(current)}, which can't be so yet`);
  }

  /** Whether whoever has this record has won it from us. */
  private isWon(claim: Exclude<Claim, { kind: 'seize' }>, record: VmRecord): boolean {
    switch (claim.kind) {
      case 'alone': {
        const { seen, won } = this.memory;
        return seen === 0 || won < seen ? record.generation >= seen : this.isNext(record, won, this.peer);
      }
      case 'protected':
        return this.isNext(record, claim.generation, claim.secondary);
      case 'take-over':
        return this.isNext(record, claim.generation, claim.primary);
    }
  }

  /** What one end of a protection holds nobody else can hold; the generation after it only the other end, if it is known; those after that anybody. */
  private isNext({ generation, primary }: VmRecord, held: number, peer: string | null): boolean {
    return generation > held + (peer !== null && primary !== peer ? 1 : 0);
  }

  /** Whoever isn't in the record leaves a generation out, so that it isn't taken for a stranger by whoever is. */
  private seized(atLeast: number, current: VmRecord | null): number {
    const next = current === null ? 0 : current.generation + 1;
    const inside = current?.primary === this.node || current?.secondary === this.node;
    return Math.max(atLeast, this.memory.seen + 1, inside || current === null ? next : next + 1);
  }

  private transact(attempt: Attempt, expected: string, record: VmRecord): void {
    if (record.generation >= GENERATION_MAX) {
      this.retryLater(attempt, `generation ${record.generation} leaves no room for the next ones`);
      return;
    }
    attempt.transaction = { expected, record };
    attempt.request = ++this.requests;
    this.effects.push({ type: 'transact', request: attempt.request, expected, record });
  }

  private read(): number {
    this.effects.push({ type: 'read', request: ++this.requests });
    return this.requests;
  }
}

function doubt(found: string): Verdict {
  const check =
    'is --witness the right etcd, --witness-prefix the right path, and was etcd restored or emptied?';
  return {
    doubt: `the witness ${found}: ${check} When you know who runs the VM, --force there writes it down`,
  };
}

function describe({ primary, generation, mode, secondary }: VmRecord): string {
  return `${primary} in generation ${generation}${mode === 'alone' ? ', alone' : `, with ${secondary} as its standby`}`;
}

const NODE_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/;

export function isNodeName(text: unknown): text is string {
  return typeof text === 'string' && NODE_NAME.test(text);
}

export function encodeRecord(record: VmRecord): string {
  return JSON.stringify(record);
}

/** Throws RangeError that says what is wrong with it. */
export function parseRecord(text: string): VmRecord {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new RangeError('it is not JSON');
  }
  if (typeof value !== 'object' || value === null) throw new RangeError('it is no object');
  const { format, generation, mode, primary, secondary, claim } = value as Record<string, unknown>;
  if (format !== 1) throw new RangeError(`its format is ${JSON.stringify(format)}, this version knows 1`);
  // Room for a claim, so that none has to be refused for the number's sake.
  if (
    !Number.isSafeInteger(generation) ||
    (generation as number) < 1 ||
    (generation as number) >= GENERATION_MAX - 1
  )
    throw new RangeError('its generation is out of range');
  if (mode !== 'alone' && mode !== 'protected')
    throw new RangeError('its mode is neither alone nor protected');
  if (!isNodeName(primary)) throw new RangeError('its primary is no name');
  if (mode === 'alone' ? secondary !== null : !isNodeName(secondary))
    throw new RangeError('its secondary does not fit its mode');
  if (typeof claim !== 'string' || !/^[0-9a-f]{32}$/.test(claim)) throw new RangeError('its claim is no id');
  return {
    format,
    generation: generation as number,
    mode,
    primary,
    secondary: secondary as string | null,
    claim,
  };
}
