/** What happened, with its times, and what must not have: the story that a failure tells. */
import { monotonicMs } from '../../src/testbed/wait.ts';

/** One thing that is wrong is soon seen in each of a thousand frames. */
const VIOLATIONS_MAX = 10;

export class Journal {
  readonly #beganMs = monotonicMs();
  readonly #lines: string[] = [];
  readonly #violations: string[] = [];
  readonly #print: (line: string) => void;

  /** `print` gets each line as it is noted. */
  constructor(print: (line: string) => void) {
    this.#print = print;
    this.note(`begins at ${new Date().toISOString()}`);
  }

  /** Of a moment of CLOCK_MONOTONIC, as the lines have it. */
  timeOf(atMs: number): string {
    return `${((atMs - this.#beganMs) / 1000).toFixed(3).padStart(8)} s`;
  }

  note(text: string): void {
    const line = `${this.timeOf(monotonicMs())}  ${text}`;
    this.#lines.push(line);
    this.#print(line);
  }

  /** Something that must hold didn't. Ends the run soon; more may be found until then. */
  violate(text: string): void {
    if (this.#violations.includes(text) || this.#violations.length === VIOLATIONS_MAX) return;
    this.#violations.push(text);
    this.note(`VIOLATION: ${text}`);
  }

  get violations(): readonly string[] {
    return this.#violations;
  }

  get lines(): readonly string[] {
    return this.#lines;
  }
}
