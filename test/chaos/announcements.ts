/**
 * Output commit as the outside sees it: the guest announces "SEQUENCE SECRET" before it stores it, so whoever runs later must know every secret that was heard, and
 * no sequence number is ever heard with two of them. Pure.
 */

/** Before a switch of VMs everything heard is asked about; of the rest, one in so many. */
const BEFORE_SWITCH_MS = 3000;
const ELSE_ONE_IN = 16;

interface Heard {
  secret: string;
  atMs: number;
}

export class Announcements {
  heardCount = 0;
  verifiedCount = 0;
  /** All of this guest's life. */
  readonly #secrets = new Map<number, string>();
  /** Not asked about yet. */
  readonly #unverified = new Map<number, Heard>();
  readonly #answers = new Map<number, string>();

  /** Returns what is wrong with it. */
  onHeard(text: string, atMs: number): string | null {
    const [sequence, secret] = parsePair(text);
    const before = this.#secrets.get(sequence);
    this.#secrets.set(sequence, secret);
    this.#unverified.set(sequence, { secret, atMs });
    this.heardCount++;
    return before === undefined || before === secret
      ? null
      : `announcement ${sequence} was heard with two secrets: two VMs have made it`;
  }

  onAnswer(text: string): void {
    this.#answers.set(...parsePair(text));
  }

  answered(sequence: number): boolean {
    return this.#answers.has(sequence);
  }

  /** Sequence numbers to ask the guest about. What isn't among them counts as seen. */
  toVerify(switchesMs: readonly number[]): number[] {
    const chosen = [...this.#unverified].filter(
      ([sequence, { atMs }]) =>
        sequence % ELSE_ONE_IN === 0 ||
        switchesMs.some((switchMs) => atMs > switchMs - BEFORE_SWITCH_MS && atMs <= switchMs),
    );
    this.#answers.clear();
    return chosen.map(([sequence]) => sequence);
  }

  /** Once all of them have been answered: what the guest doesn't know. */
  verified(sequences: readonly number[]): string[] {
    this.verifiedCount += sequences.length;
    const upTo = Math.max(...sequences);
    const lost = sequences.filter(
      (sequence) => this.#unverified.get(sequence)?.secret !== this.#answers.get(sequence),
    );
    for (const sequence of this.#unverified.keys()) if (sequence <= upTo) this.#unverified.delete(sequence);
    return lost.map((sequence) => {
      const answer = this.#answers.get(sequence);
      return `announcement ${sequence} was heard outside, and the guest's secret for it is ${answer}`;
    });
  }

  /** Another guest begins to count anew. */
  forget(): void {
    this.#secrets.clear();
    this.#unverified.clear();
    this.#answers.clear();
  }
}

function parsePair(text: string): [number, string] {
  const pair = /^(\d+) (\d+|unknown)$/.exec(text);
  if (!pair?.[1] || !pair[2]) throw new Error(`not a datagram of announce: ${JSON.stringify(text)}`);
  return [Number(pair[1]), pair[2]];
}
