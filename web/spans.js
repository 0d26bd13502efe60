/** How long a machine was in which state, from its events. */

/** @typedef {import('../src/web/shown.ts').ShownEvent} ShownEvent */
/** @typedef {{ state: string, reason: string, fromMs: number, toMs: number }} Span */

/**
 * The states of one machine from `startMs` to `endMs`. What it was before the first event that is known is not shown.
 * @param {readonly ShownEvent[]} events of this machine, the oldest first
 * @param {number} startMs @param {number} endMs
 * @returns {Span[]}
 */
export function spansOf(events, startMs, endMs) {
  /** @type {Span[]} */
  const spans = [];
  for (const { state, reason, time } of events) {
    const fromMs = Math.min(Date.parse(time), endMs);
    const last = spans.at(-1);
    if (last?.state === state) continue;
    if (last) last.toMs = fromMs;
    spans.push({ state, reason, fromMs, toMs: endMs });
  }
  return spans
    .map((span) => ({ ...span, fromMs: Math.max(span.fromMs, startMs) }))
    .filter(({ fromMs, toMs }) => toMs > fromMs);
}
