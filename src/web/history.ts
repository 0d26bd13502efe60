/** What the charts of one VM are drawn from: the figures of the last quarter of an hour, in bounded memory. */

/** Of the time since the look before; null where there is no such figure. The page relies on the order. */
export const COLUMNS = [
  'timeMs',
  'pauseMs',
  'pauseP99Ms',
  'checkpointMs',
  'checkpointP99Ms',
  'flushMs',
  'loadMs',
  'dirtyPagesPerSecond',
  'bytesPerSecond',
] as const;
export type Column = (typeof COLUMNS)[number];
export type Figures = Record<Column, number | null>;
export type Row = (number | null)[];

/** A quarter of an hour at a look every two seconds, and a little more. */
const ROWS_MAX = 480;

export class History {
  /** NaN: no such figure. */
  readonly #cells = new Float64Array(ROWS_MAX * COLUMNS.length);
  #rows = 0;

  add(figures: Figures): void {
    const start = (this.#rows % ROWS_MAX) * COLUMNS.length;
    for (const [index, column] of COLUMNS.entries())
      this.#cells[start + index] = figures[column] ?? Number.NaN;
    this.#rows += 1;
  }

  /** How many there have been: a row's number is that of those before it. */
  get rows(): number {
    return this.#rows;
  }

  /** Those from number `first` on that are still kept, the oldest first. */
  from(first: number): Row[] {
    const kept = Math.max(Math.min(first, this.#rows), this.#rows - ROWS_MAX, 0);
    return Array.from({ length: this.#rows - kept }, (_, index) => this.#row(kept + index));
  }

  #row(number: number): Row {
    const start = (number % ROWS_MAX) * COLUMNS.length;
    return Array.from(this.#cells.subarray(start, start + COLUMNS.length), (cell) =>
      Number.isNaN(cell) ? null : Math.round(cell * 1000) / 1000,
    );
  }
}
