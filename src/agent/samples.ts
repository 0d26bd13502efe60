/** Figures over the last checkpoints, in bounded memory. */

const WINDOW = 1024;

export interface Summary {
  last: number | null;
  p50: number | null;
  p99: number | null;
  max: number | null;
}

export class Samples {
  readonly #ring = new Float64Array(WINDOW);
  #count = 0;
  #max = Number.NEGATIVE_INFINITY;
  #last: number | null = null;

  add(value: number): void {
    this.#ring[this.#count % WINDOW] = value;
    this.#count += 1;
    this.#last = value;
    this.#max = Math.max(this.#max, value);
  }

  get count(): number {
    return this.#count;
  }

  /** Quantiles over the last 1,024 samples, the maximum over all; null while there are none. */
  summary(): Summary {
    if (this.#count === 0) return { last: null, p50: null, p99: null, max: null };
    const sorted = this.#ring.slice(0, Math.min(this.#count, WINDOW)).sort();
    return {
      last: rounded(this.#last as number),
      p50: rounded(quantile(sorted, 0.5)),
      p99: rounded(quantile(sorted, 0.99)),
      max: rounded(this.#max),
    };
  }
}

/** The nearest-rank quantile of ascending values; NaN for none. */
export function quantile(sorted: ArrayLike<number>, q: number): number {
  if (sorted.length === 0) return Number.NaN;
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil(q * sorted.length) - 1))] as number;
}

function rounded(value: number): number {
  return Math.round(value * 1000) / 1000;
}
