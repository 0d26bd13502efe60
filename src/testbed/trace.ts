/** Reads what `--trace` writes. */

export interface TraceEvent {
  name: string;
  /** M: metadata, X: a step with its length, i: a mark. */
  ph: 'M' | 'X' | 'i';
  /** Microseconds of CLOCK_MONOTONIC. */
  ts: number;
  dur?: number;
  pid: number;
  tid: number;
  args: Record<string, number | string>;
}

/** As the viewers do: a file that was cut off has every event that is whole. */
export function parseTrace(text: string): TraceEvent[] {
  const [, ...lines] = text.split('\n');
  const events: TraceEvent[] = [];
  for (const line of lines) {
    try {
      events.push(JSON.parse(line.replace(/,$/, '')));
    } catch {
      break; // the closing bracket, or where it was cut off
    }
  }
  return events;
}
