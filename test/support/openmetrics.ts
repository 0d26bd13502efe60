/** A parser of OpenMetrics 1.0 that takes nothing but what the specification allows. Sections are those of its text, "OpenMetrics 1.0.0". */

export interface ParsedSample {
  name: string;
  labels: Map<string, string>;
  value: number;
}

export interface ParsedFamily {
  name: string;
  type: string;
  unit: string | null;
  help: string | null;
  samples: ParsedSample[];
}

const NUMBER = /^(?:[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|[+-]?inf(?:inity)?|nan)$/i;
const SAMPLE = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$/;
const LABEL = /([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(,|$)/y;
const SUFFIXES: Record<string, string[]> = {
  gauge: [''],
  counter: ['_total', '_created'],
  histogram: ['_bucket', '_count', '_sum', '_created'],
  summary: ['', '_count', '_sum', '_created'],
  info: ['_info'],
};

export class OpenMetricsError extends Error {}

/** Throws OpenMetricsError with the line that is wrong. */
export function parseOpenMetrics(text: string): Map<string, ParsedFamily> {
  const families = new Map<string, ParsedFamily>();
  if (!text.endsWith('\n# EOF\n')) fail('it does not end with # EOF', text.slice(-40));
  let family: ParsedFamily | null = null;
  for (const line of text.slice(0, -'# EOF\n'.length).split('\n').slice(0, -1)) {
    if (line.startsWith('#')) family = readMetadata(families, family, line);
    else if (family === null) fail('a sample without a family', line);
    else readSample(family, line);
  }
  for (const each of families.values()) checkFamily(each);
  return families;
}

/** "MetricFamilies MUST NOT be interleaved"; their metadata stand before their samples. */
function readMetadata(
  families: Map<string, ParsedFamily>,
  current: ParsedFamily | null,
  line: string,
): ParsedFamily {
  const match = /^# (TYPE|UNIT|HELP) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+)$/.exec(line);
  const [, word, name, rest] = match ?? fail('neither metadata nor a sample', line);
  let family = current;
  if (family === null || family.name !== name) {
    if (word !== 'TYPE' || families.has(name as string)) fail('interleaved, or without its type first', line);
    family = { name: name as string, type: rest as string, unit: null, help: null, samples: [] };
    families.set(family.name, family);
    if (!(family.type in SUFFIXES)) fail('an unknown type', line);
    return family;
  }
  if (word === 'TYPE' || family.samples.length > 0) fail('metadata twice, or behind samples', line);
  if (word === 'UNIT') family.unit = rest as string;
  else family.help = unescaped(rest as string, line);
  return family;
}

function readSample(family: ParsedFamily, line: string): void {
  const [, name = '', labels, number = ''] = SAMPLE.exec(line) ?? fail('not a sample', line);
  const suffixes = SUFFIXES[family.type] as string[];
  if (!suffixes.some((suffix) => name === family.name + suffix)) fail(`no sample of ${family.name}`, line);
  if (!NUMBER.test(number)) fail('not a number', line);
  family.samples.push({ name, labels: readLabels(labels ?? '', line), value: toNumber(number) });
}

function readLabels(text: string, line: string): Map<string, string> {
  const labels = new Map<string, string>();
  LABEL.lastIndex = 0;
  while (LABEL.lastIndex < text.length) {
    const [, name, value] = LABEL.exec(text) ?? fail('labels', line);
    if (labels.has(name as string)) fail('a label twice', line);
    labels.set(name as string, unescaped(value as string, line));
  }
  if (text.endsWith(',')) fail('a comma too many', line);
  return labels;
}

function unescaped(text: string, line: string): string {
  return text.replaceAll(/\\(.?)/g, (_all, character: string) => {
    if (character === 'n') return '\n';
    return character === '\\' || character === '"' ? character : fail('an unknown escape', line);
  });
}

function toNumber(text: string): number {
  const infinite = /^([+-]?)inf/i.exec(text);
  if (infinite) return infinite[1] === '-' ? Number.NEGATIVE_INFINITY : Number.POSITIVE_INFINITY;
  return /nan/i.test(text) ? Number.NaN : Number(text);
}

function checkFamily(family: ParsedFamily): void {
  const { name, unit, samples, type } = family;
  if (unit !== null && !name.endsWith(`_${unit}`)) fail(`the unit ${unit} is not in the name`, name);
  const seen = new Set<string>();
  for (const sample of samples) {
    const key = `${sample.name} ${JSON.stringify([...sample.labels].sort())}`;
    if (seen.has(key)) fail('a series twice', key);
    seen.add(key);
    if (type === 'counter' && !(sample.value >= 0 && Number.isFinite(sample.value))) fail('counter', key);
    if (type === 'info' && sample.value !== 1) fail('an info that is not 1', key);
  }
  if (type === 'histogram') for (const group of groups(samples, 'le').values()) checkHistogram(name, group);
  if (type === 'summary') for (const group of groups(samples, 'quantile').values()) checkSummary(name, group);
}

/** By all labels but one: "MetricPoints of a Metric are not interleaved" with another's. */
function groups(samples: ParsedSample[], without: string): Map<string, ParsedSample[]> {
  const found = new Map<string, ParsedSample[]>();
  let last = '';
  for (const sample of samples) {
    const key = JSON.stringify([...sample.labels].filter(([label]) => label !== without).sort());
    if (key !== last && found.has(key)) fail('interleaved metrics', key);
    found.set(key, [...(found.get(key) ?? []), sample]);
    last = key;
  }
  return found;
}

function checkHistogram(name: string, samples: ParsedSample[]): void {
  const buckets = samples.filter((sample) => sample.name === `${name}_bucket`);
  const bounds = buckets.map(({ labels }) => labels.get('le') ?? fail('a bucket without le', name));
  for (const bound of bounds) {
    // "le values MUST be floats": 1 is written 1.0.
    if (!/[.e]|Inf/.test(bound) || !NUMBER.test(bound)) fail(`le="${bound}"`, name);
  }
  if (bounds.at(-1) !== '+Inf') fail('no bucket +Inf', name);
  expectAscending(name, bounds.map(toNumber), true);
  expectAscending(
    name,
    buckets.map(({ value }) => value),
    false,
  );
  const count = samples.find((sample) => sample.name === `${name}_count`)?.value;
  const sum = samples.find((sample) => sample.name === `${name}_sum`)?.value;
  if (count === undefined || count !== buckets.at(-1)?.value) fail('the count is not that of +Inf', name);
  if (sum === undefined || !(sum >= 0)) fail('the sum', name);
}

function checkSummary(name: string, samples: ParsedSample[]): void {
  const quantiles = samples.flatMap(({ labels, name: own }) =>
    own === name ? [labels.get('quantile')] : [],
  );
  for (const quantile of quantiles) {
    if (quantile === undefined || !(Number(quantile) >= 0 && Number(quantile) <= 1)) fail('quantile', name);
  }
}

function expectAscending(name: string, values: number[], strictly: boolean): void {
  values.reduce((before, value) => {
    if (value < before || (strictly && value === before)) fail(`${value} after ${before}`, name);
    return value;
  });
}

function fail(what: string, where: string): never {
  throw new OpenMetricsError(`${what}: ${where}`);
}
