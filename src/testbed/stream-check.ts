/** What a client must see of the guest's counter ("n=1", "n=2", ...): every number once, in order. Pure. */

export interface CounterLine {
  n: number;
  atMs: number;
}

export class StreamCheck {
  /** In the order in which they came. */
  readonly lines: CounterLine[] = [];
  /** Numbers that were left out; a jump from 3 to 7 is three. */
  gaps = 0;
  /** Lines whose number was not above all before. */
  regressions = 0;
  #partial = '';
  #highest = 0;

  /** `text` may begin and end anywhere within a line; a line's time is that of its last byte. Throws on a line that is no counter's. */
  push(text: string, atMs: number): void {
    const lines = (this.#partial + text).split('\n');
    this.#partial = lines.pop() ?? '';
    for (const line of lines) {
      const number = /^n=(\d+)$/.exec(line)?.[1];
      if (number === undefined) throw new Error(`not a line of the counter: ${JSON.stringify(line)}`);
      this.#count(Number(number), atMs);
    }
  }

  get received(): number {
    return this.lines.length;
  }

  /** The first line that came after a moment, e.g. after a kill. */
  firstAfter(atMs: number): CounterLine | undefined {
    return this.lines.find((line) => line.atMs > atMs);
  }

  #count(n: number, atMs: number): void {
    if (n <= this.#highest) this.regressions++;
    else this.gaps += n - this.#highest - 1;
    this.#highest = Math.max(this.#highest, n);
    this.lines.push({ n, atMs });
  }
}
