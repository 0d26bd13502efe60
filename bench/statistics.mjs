/** Figures of samples. Pure. */

/** The nearest-rank quantile, as `colo-agent status` takes it; null of no samples. */
export function quantile(samples, q) {
  if (samples.length === 0) return null;
  const sorted = Float64Array.from(samples).sort();
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil(q * sorted.length) - 1))];
}

export function median(samples) {
  return quantile(samples, 0.5);
}

/** {count, p50, p99, max}; the figures are null of no samples. */
export function summarize(samples) {
  return {
    count: samples.length,
    p50: quantile(samples, 0.5),
    p99: quantile(samples, 0.99),
    max: quantile(samples, 1),
  };
}

/** How `ours` stands to `theirs` in each pair of a run, and of these the median; null when no pair has both. */
export function medianRatio(pairs) {
  const ratios = pairs
    .filter(({ ours, theirs }) => Number.isFinite(ours) && Number.isFinite(theirs) && theirs > 0)
    .map(({ ours, theirs }) => ours / theirs);
  return median(ratios);
}

/** The points of a cumulative distribution: [value, share of the samples that are no greater]. */
export function distribution(samples, points = 200) {
  const sorted = Float64Array.from(samples).sort();
  const step = Math.max(1, Math.floor(sorted.length / points));
  const found = [];
  for (let i = 0; i < sorted.length; i += step) found.push([sorted[i], (i + 1) / sorted.length]);
  if (sorted.length > 0) found.push([sorted.at(-1), 1]);
  return found;
}

/** Rounded to what is worth keeping in a file; null stays null. */
export function rounded(value, digits = 3) {
  return Number.isFinite(value) ? Number(value.toFixed(digits)) : null;
}
