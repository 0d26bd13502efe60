/**
 * Looks at all agents again and again, and keeps what the page shows: the last look, and a history of each VM. A look costs an agent what a `status` does, so it goes on,
 * seldom, while nobody watches: who opens the page after a failover wants to see what was before it.
 */
import type { Reading, Readings } from '../metrics/readings.ts';
import { figuresOf, type Look, noFigures } from './figures.ts';
import { type Figures, History } from './history.ts';

export interface SamplerOptions {
  /** Never rejects for an agent's sake; one that doesn't answer within `answerMs` costs its own figures alone. */
  readings: (answerMs: number) => Promise<Readings>;
  /** Told when a look failed as a whole. */
  onFailure: (reason: string) => void;
  watchedMs?: number;
  unwatchedMs?: number;
}

const WATCHED_MS = 2000;
const UNWATCHED_MS = 10_000;
/** Who has asked for the page's figures within this time is watching. */
const WATCHING_MS = 30_000;

export interface Sample {
  reading: Reading;
  timeMs: number;
  /** Of the time before this look; null while the agent says nothing. */
  figures: Figures | null;
}

interface Watched {
  sample: Sample;
  look: Look | null;
  history: History;
}

export class Sampler {
  readonly #readings: SamplerOptions['readings'];
  readonly #onFailure: SamplerOptions['onFailure'];
  readonly #watchedMs: number;
  readonly #unwatchedMs: number;
  readonly #vms = new Map<string, Watched>();
  #watchedUntilMs = Number.NEGATIVE_INFINITY;
  #timer: NodeJS.Timeout | undefined;
  #looking = false;
  #closed = false;

  constructor(options: SamplerOptions) {
    this.#readings = options.readings;
    this.#onFailure = options.onFailure;
    this.#watchedMs = options.watchedMs ?? WATCHED_MS;
    this.#unwatchedMs = options.unwatchedMs ?? UNWATCHED_MS;
    void this.#look();
  }

  /** Somebody watches: from now on it looks more often, for a while. */
  watch(): void {
    const nowMs = performance.now();
    const wasWatched = nowMs < this.#watchedUntilMs;
    this.#watchedUntilMs = nowMs + WATCHING_MS;
    if (!wasWatched && !this.#looking) void this.#look();
  }

  /** Of the last look; null: not looked at yet. */
  sample(vm: string): Sample | null {
    return this.#vms.get(vm)?.sample ?? null;
  }

  history(vm: string): History | null {
    return this.#vms.get(vm)?.history ?? null;
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
  }

  async #look(): Promise<void> {
    clearTimeout(this.#timer);
    if (this.#closed) return;
    this.#looking = true;
    const began = performance.now();
    try {
      // Less than the time to the next look: an agent that hangs doesn't make the others' looks rarer.
      this.#keep(await this.#readings(this.#watchedMs / 2));
    } catch (error) {
      this.#onFailure((error as Error).message);
    }
    this.#looking = false;
    if (this.#closed) return;
    const now = performance.now();
    const everyMs = now < this.#watchedUntilMs ? this.#watchedMs : this.#unwatchedMs;
    this.#timer = setTimeout(() => void this.#look(), Math.max(0, began + everyMs - now)).unref();
  }

  #keep(readings: Readings): void {
    const timeMs = Date.now();
    for (const vm of this.#vms.keys()) if (!readings.has(vm)) this.#vms.delete(vm);
    for (const [vm, reading] of readings) {
      const { look: before, history } = this.#vms.get(vm) ?? { look: null, history: new History() };
      const look = 'status' in reading ? { timeMs, status: reading.status } : null;
      const figures = look === null ? null : figuresOf(look, before);
      // A gap, where nothing is known.
      history.add(figures ?? noFigures(timeMs));
      this.#vms.set(vm, { sample: { reading, timeMs, figures }, look, history });
    }
  }
}
