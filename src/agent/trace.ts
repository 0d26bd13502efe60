/**
 * Steps and when they began and ended, on named tracks, in the order in which they ended. What is noted goes into a ring that was allocated when
 * the agent began; it becomes text and goes to the file later, and never while hold() is in force: a guest that stands must not wait for that.
 */
import { monotonicMs } from './driver.ts';
import type { Log } from './log.ts';
import { TraceFile } from './trace-file.ts';

/** A step's track, and the names of its figures (at most ARGUMENTS_MAX) besides the epoch. */
export interface StepKind {
  track: string;
  args?: readonly string[];
}

const ARGUMENTS_MAX = 4;
/** For hundreds of checkpoints: a write that hangs for a moment loses nothing. */
const RING_RECORDS = 8192;
/** Step, epoch, begin and end in microseconds, and the arguments. */
const FIELDS = 4 + ARGUMENTS_MAX;
const FLUSH_DELAY_MS = 200;
/** Formatted at once: a fraction of a millisecond in which the event loop does nothing else. */
const FLUSH_RECORDS_MAX = 256;

/** What has no epoch. */
export const NO_EPOCH = -1;

export interface TraceOptions<Steps extends Record<string, StepKind>> {
  /** The name of the process in the viewer. */
  processName: string;
  steps: Steps;
  log: Log;
  bytesMax?: number;
}

export class Trace<Steps extends Record<string, StepKind>> {
  readonly #file: TraceFile;
  readonly #names: readonly string[];
  readonly #kinds: readonly StepKind[];
  readonly #tracks: readonly string[];
  readonly #indexes = new Map<keyof Steps, number>();
  readonly #ring = new Float64Array(RING_RECORDS * FIELDS);
  readonly #details: (string | null)[] = new Array(RING_RECORDS).fill(null);
  readonly #monotonicOffsetUs = monotonicOffsetUs();
  /** Of all records ever: the oldest that isn't in the file yet, and the next. */
  #first = 0;
  #next = 0;
  #dropped = 0;
  #held = false;
  #armed = false;
  #closing = false;

  /** Rejects when the file can't be made. */
  static async open<Steps extends Record<string, StepKind>>(
    path: string,
    { log, bytesMax, processName, steps }: TraceOptions<Steps>,
  ): Promise<Trace<Steps>> {
    return new Trace(await TraceFile.open(path, log, bytesMax), processName, steps);
  }

  private constructor(file: TraceFile, processName: string, steps: Steps) {
    this.#file = file;
    this.#names = Object.keys(steps);
    this.#kinds = Object.values(steps);
    this.#tracks = [...new Set(this.#kinds.map(({ track }) => track))];
    for (const [index, name] of this.#names.entries()) this.#indexes.set(name, index);
    file.append(this.#metadata(processName));
  }

  /** Nothing is written from here on until letGo(). */
  hold(): void {
    this.#held = true;
  }

  letGo(): void {
    this.#held = false;
    this.#arm();
  }

  /** Times are those of monotonicMs(). A figure that is NaN is left out. */
  span(
    step: keyof Steps,
    epoch: number,
    beginMs: number,
    endMs: number,
    a = NaN,
    b = NaN,
    c = NaN,
    d = NaN,
  ): void {
    this.spanUs(step, epoch, this.#toUs(beginMs), this.#toUs(endMs), a, b, c, d);
  }

  /** Times are microseconds of CLOCK_MONOTONIC, as the native parts tell them. */
  spanUs(
    step: keyof Steps,
    epoch: number,
    beginUs: number,
    endUs: number,
    a = NaN,
    b = NaN,
    c = NaN,
    d = NaN,
  ): void {
    if (this.#next - this.#first === RING_RECORDS) {
      this.#dropped += 1;
      return;
    }
    const record = this.#next % RING_RECORDS;
    const at = record * FIELDS;
    const ring = this.#ring;
    ring[at] = this.#indexes.get(step) as number;
    ring[at + 1] = epoch;
    ring[at + 2] = beginUs;
    ring[at + 3] = Math.max(beginUs, endUs);
    ring[at + 4] = a;
    ring[at + 5] = b;
    ring[at + 6] = c;
    ring[at + 7] = d;
    this.#details[record] = null;
    this.#next += 1;
    this.#arm();
  }

  /** Something that has no length, with what there is to say of it. */
  mark(step: keyof Steps, epoch: number, atMs: number, detail: string): void {
    const before = this.#next;
    this.span(step, epoch, atMs, atMs);
    if (this.#next > before) this.#details[before % RING_RECORDS] = detail;
  }

  /** Writes what is left and completes the file. */
  async close(): Promise<void> {
    this.#closing = true;
    await this.#file.written();
    while (!this.#file.ended && this.#next > this.#first) {
      this.#flush();
      await this.#file.written();
    }
    await this.#file.close();
  }

  /** Has the ring emptied soon, unless that is under way. */
  #arm(): void {
    if (this.#armed || this.#held || this.#closing || this.#file.ended || this.#next === this.#first) return;
    this.#armed = true;
    const behind = this.#next - this.#first >= FLUSH_RECORDS_MAX;
    setTimeout(() => void this.#empty(), behind ? 0 : FLUSH_DELAY_MS).unref();
  }

  async #empty(): Promise<void> {
    await this.#file.written();
    this.#armed = false;
    if (this.#held || this.#closing) return; // letGo() or close() sees to it
    this.#flush();
    this.#arm();
  }

  #flush(): void {
    const events: string[] = [];
    if (this.#dropped > 0) {
      // They came when there was no room behind the newest record, which is the one before `next`.
      const ts = Math.floor(this.#ring[((this.#next - 1) % RING_RECORDS) * FIELDS + 3] as number);
      const name = `${this.#dropped} steps were dropped`;
      events.push(JSON.stringify({ ph: 'i', s: 'p', name, ts, ...this.#ids(0), args: {} }));
      this.#dropped = 0;
    }
    while (this.#first < this.#next && events.length < FLUSH_RECORDS_MAX) {
      events.push(this.#event(this.#first % RING_RECORDS));
      this.#first += 1;
    }
    this.#file.append(events);
  }

  #event(record: number): string {
    const at = record * FIELDS;
    const [index, epoch, beginUs, endUs, ...figures] = this.#ring.subarray(at, at + FIELDS) as unknown as [
      number,
      number,
      number,
      number,
      ...number[],
    ];
    const kind = this.#kinds[index] as StepKind;
    const args: Record<string, number | string> = {};
    if (epoch !== NO_EPOCH) args['epoch'] = epoch;
    for (const [position, name] of (kind.args ?? []).entries()) {
      const figure = figures[position] as number;
      if (!Number.isNaN(figure)) args[name] = Math.round(figure);
    }
    const detail = this.#details[record];
    this.#details[record] = null;
    if (detail !== null && detail !== undefined) args['detail'] = detail;
    // Whole microseconds on both ends, so that steps that follow each other still do.
    const ts = Math.floor(beginUs);
    const common = { name: this.#names[index], ts, ...this.#ids(this.#tracks.indexOf(kind.track)), args };
    return JSON.stringify(
      detail === null ? { ph: 'X', dur: Math.floor(endUs) - ts, ...common } : { ph: 'i', s: 't', ...common },
    );
  }

  #metadata(processName: string): string[] {
    const metadata = (name: string, track: number, args: object) =>
      JSON.stringify({ name, ph: 'M', ts: 0, ...this.#ids(track), args });
    return [
      metadata('process_name', 0, { name: processName }),
      ...this.#tracks.flatMap((name, index) => [
        metadata('thread_name', index, { name }),
        metadata('thread_sort_index', index, { sort_index: index }),
      ]),
    ];
  }

  #ids(track: number): { pid: number; tid: number } {
    return { pid: process.pid, tid: track + 1 };
  }

  #toUs(ms: number): number {
    return ms * 1000 + this.#monotonicOffsetUs;
  }
}

/**
 * What lies between the agent's clock, which begins with the process, and CLOCK_MONOTONIC, which Node's hrtime and the native parts tell: of some
 * comparisons the one that took the least time.
 */
function monotonicOffsetUs(): number {
  let best = { tookMs: Number.POSITIVE_INFINITY, offsetUs: 0 };
  for (let i = 0; i < 16; i += 1) {
    const before = monotonicMs();
    const hrtimeUs = Number(process.hrtime.bigint()) / 1000;
    const after = monotonicMs();
    const tookMs = after - before;
    if (tookMs < best.tookMs) best = { tookMs, offsetUs: hrtimeUs - ((before + after) / 2) * 1000 };
  }
  return best.offsetUs;
}
