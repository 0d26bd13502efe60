/**
 * Metric families as the text that Prometheus reads: its own format 0.0.4, or OpenMetrics 1.0 (https://github.com/OpenObservability/OpenMetrics).
 *
 * No client library: such a library owns its counters and has them counted up where things happen. Ours are counted by the agents, each a process of its own, and
 * come here as they stand, whole histograms among them, to be written down anew for every answer. What of a library would be left is this file. (prom-client 15,
 * besides, is handed over to a successor that doesn't run on Node.js 20.) It is held against promtool and a strict parser by its tests.
 */

export type Format = 'text' | 'openmetrics';

export const CONTENT_TYPE: Record<Format, string> = {
  text: 'text/plain; version=0.0.4; charset=utf-8',
  openmetrics: 'application/openmetrics-text; version=1.0.0; charset=utf-8',
};

export type Kind = 'counter' | 'gauge' | 'histogram' | 'summary' | 'info';

/** Of a histogram: how many were at most the bound at the same place and above the one before; the last of `counts`: above all of them. */
export interface Buckets {
  bounds: readonly number[];
  counts: readonly number[];
  sum: number;
}

/** Of a summary: values by quantile. */
export type Quantiles = readonly (readonly [quantile: number, value: number])[];

export interface Sample {
  labels: Readonly<Record<string, string>>;
  value: number | Buckets | Quantiles;
}

export interface Family {
  /** Without the `_total` or `_info` that a counter's or an info's samples have; with its unit at the end. */
  name: string;
  kind: Kind;
  help: string;
  samples: readonly Sample[];
}

const UNITS = ['seconds', 'bytes', 'ratio'];
const SUFFIX: Partial<Record<Kind, string>> = { counter: '_total', info: '_info' };
const NAME = /^[a-z][a-z0-9_]*$/;
/** Names that would be those of another family's samples. */
const RESERVED = /_(total|info|count|sum|bucket|created|gcount|gsum)$/;

/** Families without samples are left out. Throws Error for what isn't valid in either format: two series with the same labels, a counter below zero, and so on. */
export function exposition(families: readonly Family[], format: Format): string {
  const names = new Set<string>();
  const lines: string[] = [];
  for (const family of families) {
    if (!NAME.test(family.name) || RESERVED.test(family.name) || names.has(family.name))
      throw new Error(`metric family ${family.name}: not a name, or there already`);
    names.add(family.name);
    if (family.samples.length === 0) continue;
    lines.push(...metadata(family, format));
    const series = new Set<string>();
    for (const { labels, value } of family.samples) {
      const text = labelText(labels);
      if (series.has(text)) throw new Error(`${family.name}{${text}} is there twice`);
      series.add(text);
      lines.push(...sampleLines(family, labels, value));
    }
  }
  if (format === 'openmetrics') lines.push('# EOF');
  return `${lines.join('\n')}\n`;
}

/** OpenMetrics names a counter's family without `_total` and has an `info`; to Prometheus' format every name is as its samples have it. */
function metadata({ name, kind, help }: Family, format: Format): string[] {
  if (format === 'text') {
    const shown = name + (SUFFIX[kind] ?? '');
    return [`# HELP ${shown} ${escapeHelp(help)}`, `# TYPE ${shown} ${kind === 'info' ? 'gauge' : kind}`];
  }
  const unit = UNITS.find((candidate) => name.endsWith(`_${candidate}`));
  return [
    `# TYPE ${name} ${kind}`,
    ...(unit === undefined ? [] : [`# UNIT ${name} ${unit}`]),
    `# HELP ${name} ${escapeLabel(help)}`,
  ];
}

function sampleLines(family: Family, labels: Sample['labels'], value: Sample['value']): string[] {
  const { name, kind } = family;
  if (typeof value === 'number') {
    if (kind === 'histogram' || kind === 'summary') throw new Error(`${name}: a number is no ${kind}`);
    if (kind === 'counter' && !(value >= 0 && Number.isFinite(value)))
      throw new Error(`counter ${name} is ${value}`);
    return [line(name + (SUFFIX[kind] ?? ''), labels, value)];
  }
  if ('bounds' in value && kind === 'histogram') return bucketLines(name, labels, value);
  if (!('bounds' in value) && kind === 'summary')
    return value.map(([quantile, at]) => line(name, { ...labels, quantile: floatText(quantile) }, at));
  throw new Error(`${name}: this is the value of no ${kind}`);
}

/** Each bucket has all the shorter ones in it. */
function bucketLines(name: string, labels: Sample['labels'], { bounds, counts, sum }: Buckets): string[] {
  if (counts.length !== bounds.length + 1)
    throw new Error(`${name}: ${counts.length} counts for ${bounds.length} bounds`);
  let count = 0;
  const lines = counts.map((more, place) => {
    count += more;
    return line(`${name}_bucket`, { ...labels, le: floatText(bounds[place] ?? Infinity) }, count);
  });
  return [...lines, line(`${name}_count`, labels, count), line(`${name}_sum`, labels, sum)];
}

function line(name: string, labels: Sample['labels'], value: number): string {
  const text = labelText(labels);
  return `${name}${text === '' ? '' : `{${text}}`} ${numberText(value)}`;
}

function labelText(labels: Sample['labels']): string {
  return Object.entries(labels)
    .map(([label, value]) => {
      if (!NAME.test(label)) throw new Error(`${label} is no label's name`);
      return `${label}="${escapeLabel(value)}"`;
    })
    .join(',');
}

function numberText(value: number): string {
  if (Number.isFinite(value) || Number.isNaN(value)) return String(value);
  return value > 0 ? '+Inf' : '-Inf';
}

/** OpenMetrics wants `1.0` where a number stands in a label; so does Prometheus' format here, or the series would be others in the other format. */
function floatText(value: number): string {
  return Number.isInteger(value) ? value.toFixed(1) : numberText(value);
}

function escapeHelp(text: string): string {
  return text.replaceAll('\\', '\\\\').replaceAll('\n', '\\n');
}

function escapeLabel(text: string): string {
  return escapeHelp(text).replaceAll('"', '\\"');
}
