/** What the primary may do by the witness's word: open its gate, look for a standby, call itself protected. It outlives every session. */
import { type Claim, SEIZE_MS } from './arbiter.ts';
import type { ClaimEvent, StateWord } from './machine.ts';
import type { PrimaryContext } from './primary-context.ts';

/**
 * INVARIANT 4. `nothing`: not even this VM's first generation has been won. `alone`: nobody can be promoted. `shared`: a claim of `protected` has been tried,
 * so that the standby may have taken over at any moment since; until a claim of `alone` has been won nothing leaves that the standby hasn't confirmed.
 */
type Standing = 'nothing' | 'alone' | 'shared';

export class Authority {
  /** Why the witness hasn't answered yet. */
  trouble: string | null = null;
  private readonly context: PrimaryContext;
  private standing: Standing;
  private asked: Claim['kind'] | null = null;
  private protectedWon = false;
  /** A person has said that nobody else runs; so long the witness is given to be told. */
  private forcedAtMs: number | null = null;

  constructor(context: PrimaryContext) {
    this.context = context;
    this.standing = this.mustAsk ? 'nothing' : 'alone';
  }

  get witnessed(): boolean {
    return this.context.options.arbitration === 'witness';
  }

  /** Not after a take-over: what it won is `alone`, and only this side can change it (docs/arbitration.md). */
  private get mustAsk(): boolean {
    return this.witnessed && !this.context.options.tookOver;
  }

  get mayOpenGate(): boolean {
    return this.standing === 'alone';
  }

  /** A session needs a generation that is ours, and no question open. */
  get mayConnect(): boolean {
    return this.standing === 'alone' && this.asked === null;
  }

  /** The witness knows that the standby may take over. Without a witness it is always so. */
  get isProtected(): boolean {
    return !this.witnessed || this.protectedWon;
  }

  /** A generation has been won at some time: whoever holds a newer one has taken this VM's place. */
  get everWon(): boolean {
    return this.standing !== 'nothing';
  }

  /** The machine's first step, and what to show then. */
  start(): [StateWord, string] {
    const { foreignGate, options } = this.context;
    // Whatever an earlier agent has left, a generation of our own tells whether anybody has taken its place.
    if (this.mustAsk && options.forced) this.ask({ kind: 'seize', atLeast: options.generation + 1 });
    else if (this.mustAsk) this.claimAlone(options.generation + 1);
    if (foreignGate) return this.describeAlone('');
    if (options.tookOver || options.forced) return this.describeAlone('took over; looking for a standby');
    return ['STARTING', this.witnessed ? 'asking the witness' : 'connecting to the secondary'];
  }

  /** What to show while there is no session because of `missing`. */
  describeAlone(missing: string): [StateWord, string] {
    const { trouble } = this;
    const silent = `the gate is closed until the witness answers: ${trouble}`;
    if (this.context.foreignGate) {
      const asking = this.witnessed
        ? 'asking the witness'
        : `waiting for the peer${missing && `: ${missing}`}`;
      return ['BLOCKED', `gate of an earlier agent found; ${trouble === null ? asking : silent}`];
    }
    if (this.context.handedOver) return this.describeHandedOver(missing);
    if (this.standing === 'shared')
      return trouble === null
        ? ['EXPOSED', `${missing}; asking the witness who goes on`]
        : ['BLOCKED', `${missing}; ${silent}`];
    return ['EXPOSED', trouble === null ? missing : `${missing}; the witness doesn't answer: ${trouble}`];
  }

  private describeHandedOver(missing: string): [StateWord, string] {
    const what = `the standby, to which the VM was handed over, has not said whether it runs it (${missing})`;
    if (!this.witnessed)
      return [
        'BLOCKED',
        `${what}; the VM stands here until it says so. If it is known not to run there: \`colo-agent stop --force NAME\` here`,
      ];
    return this.trouble === null
      ? ['EXPOSED', `${what}; the VM stands here until the witness says who goes on`]
      : ['BLOCKED', `${what}; the VM stands here until the witness answers: ${this.trouble}`];
  }

  /** Whoever goes on without the standby does so in a generation of its own. */
  claimAlone(atLeast: number): void {
    if (this.witnessed) this.ask({ kind: this.forcedAtMs === null ? 'alone' : 'seize', atLeast });
    else this.context.generation = atLeast;
  }

  /** The standby holds a checkpoint of this session. Without a word while that has been asked already. */
  claimProtected(secondary: string): void {
    if (!this.witnessed || this.asked !== null || this.standing !== 'alone') return;
    // From the moment it is tried it may have happened.
    this.standing = 'shared';
    this.ask({ kind: 'protected', generation: this.context.generation, secondary });
  }

  /** A person knows that nobody else runs. What the witness says of it is asked for, but not waited for longer than a while. */
  force(): void {
    if (this.standing === 'alone' || this.forcedAtMs !== null) return;
    this.forcedAtMs = this.context.nowMs + SEIZE_MS;
    this.claimAlone(this.context.generation + 1);
  }

  get nextTimepointMs(): number | null {
    return this.forcedAtMs;
  }

  /** The person's word goes: what the witness, which doesn't know of it, said last. Null: it isn't so, or not yet. */
  override(): string | null {
    if (this.forcedAtMs === null || this.context.nowMs < this.forcedAtMs) return null;
    const silence = this.trouble ?? 'it has not answered';
    this.forcedAtMs = null;
    this.standing = 'alone';
    this.asked = null;
    this.trouble = null;
    return silence;
  }

  /** Whether the answer is to what was asked last. */
  onAnswer(event: ClaimEvent): boolean {
    if (event.kind !== this.asked) return false;
    this.trouble = event.type === 'claim-unanswered' ? event.reason : null;
    if (event.type === 'claim-unanswered') return true;
    this.asked = null;
    if (event.type === 'claim-lost') return true;
    this.protectedWon = event.kind === 'protected';
    if (event.kind !== 'protected') {
      this.standing = 'alone';
      this.forcedAtMs = null;
    }
    this.context.generation = event.generation;
    return true;
  }

  private ask(claim: Claim): void {
    this.asked = claim.kind;
    this.protectedWon = false;
    this.trouble = null;
    this.context.emit({ type: 'claim', claim });
  }
}
