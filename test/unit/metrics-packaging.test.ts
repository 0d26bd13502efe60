/** What is handed out for Prometheus and Grafana, and the table for people, name the metrics that there are. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { exposition, type Family } from '../../src/metrics/exposition.ts';
import { familiesOf } from '../../src/metrics/families.ts';
import { parseOpenMetrics } from '../support/openmetrics.ts';
import { promtool } from '../support/promtool.ts';
import { primaryStatus, secondaryStatus } from '../support/statuses.ts';

const root = path.join(import.meta.dirname, '..', '..');
const folder = mkdtempSync(path.join(tmpdir(), 'colo-packaging-'));
afterAll(() => rmSync(folder, { recursive: true }));

const read = (name: string) => readFileSync(path.join(root, name), 'utf8');

const FAMILIES = familiesOf(
  new Map([
    ['web1', { status: primaryStatus({ syncPercent: 1, syncSecondsLeft: 1 }), restarts: 1 }],
    ['db', { status: secondaryStatus({ vm: 'db' }), restarts: 1 }],
  ]),
  '1.2.3',
);
const SAMPLES = [...parseOpenMetrics(exposition(FAMILIES, 'openmetrics')).values()].flatMap(
  ({ samples }) => samples,
);
const NAMES = new Set(SAMPLES.map(({ name }) => name));
/** What Prometheus adds itself. */
const LABELS = new Set(['instance', 'job', ...SAMPLES.flatMap(({ labels }) => [...labels.keys()])]);

function metricsIn(text: string): string[] {
  return [...new Set(text.match(/\bcolo_agent_\w+/g))];
}

const unknownIn = (text: string): string[] => metricsIn(text).filter((name) => !NAMES.has(name));

function labelsIn(text: string): string[] {
  const lists = [...text.matchAll(/\b(?:by|on) \(([\w, ]+)\)/g)].flatMap(([, list = '']) => list.split(', '));
  const matchers = [...text.matchAll(/[{,]\s*(\w+)(?:=~|!=|!~|=)"/g)].map(([, name = '']) => name);
  const shown = [...text.matchAll(/\{\{ ?(?:\$labels\.)?(\w+) ?\}\}/g)].map(([, name = '']) => name);
  return [...new Set([...lists, ...matchers, ...shown])];
}

test('the fixtures have a series of every family', () => {
  expect(FAMILIES.filter(({ samples }) => samples.length === 0).map(({ name }) => name)).toEqual([]);
});

describe('the alert rules', { timeout: 120_000 }, () => {
  const alerts = read('packaging/prometheus/alerts.yml');
  const tests = read('packaging/prometheus/alerts.test.yml');
  const names = [...alerts.matchAll(/- alert: (\w+)/g)].map(([, name = '']) => name);

  test('promtool takes them', () => {
    const { code, output } = promtool(['check', 'rules', '--lint-fatal', 'packaging/prometheus/alerts.yml']);
    expect(output).toContain(`SUCCESS: ${names.length} rules found`);
    expect(code).toBe(0);
  });

  test('each comes when it should, and not otherwise', () => {
    const { code, output } = promtool(['test', 'rules', 'packaging/prometheus/alerts.test.yml']);
    expect(code, output).toBe(0);
  });

  test('each is tested', () => {
    expect(names.filter((name) => !new RegExp(`${name}\\n\\s+exp_alerts:`).test(tests))).toEqual([]);
  });

  test('they and their tests know no other metrics and labels than there are', () => {
    expect(unknownIn(alerts)).toEqual([]);
    expect(unknownIn(tests)).toEqual([]);
    expect(labelsIn(alerts).filter((label) => !LABELS.has(label) && label !== 'value')).toEqual([]);
  });
});

interface Panel {
  id: number;
  type: string;
  title: string;
  gridPos: { x: number; y: number; w: number; h: number };
  targets?: { expr: string; legendFormat: string }[];
}

describe('the dashboard', { timeout: 120_000 }, () => {
  const text = read('packaging/grafana/colo-agent.json');
  const dashboard = JSON.parse(text) as {
    panels: Panel[];
    templating: { list: { name: string; definition?: string }[] };
    annotations: { list: { expr: string }[] };
  };
  const targets = dashboard.panels.flatMap(({ targets = [] }) => targets);
  const queries = [...targets, ...dashboard.annotations.list].map(({ expr }) => expr);

  test('every query names only metrics and labels that there are', () => {
    expect(queries.length).toBeGreaterThan(25);
    expect(queries.filter((query) => metricsIn(query).length === 0)).toEqual([]);
    expect(unknownIn(text)).toEqual([]);
    const labels = [...queries, ...targets.map(({ legendFormat }) => legendFormat)].flatMap(labelsIn);
    expect(labels.filter((label) => !LABELS.has(label))).toEqual([]);
  });

  test('every query is one, by promtool’s word', () => {
    const rules = queries.map((query, index) => {
      const plain = query.replaceAll(/\$__(rate_interval|range)/g, '5m').replaceAll('$', '');
      return `      - {record: "query:${index}", expr: ${JSON.stringify(plain)}}\n`;
    });
    const file = path.join(folder, 'queries.yml');
    writeFileSync(file, `groups:\n  - name: dashboard\n    rules:\n${rules.join('')}`);
    const { code, output } = promtool(['check', 'rules', file]);
    expect(output).toContain(`${queries.length} rules found`);
    expect(code).toBe(0);
  });

  test('its variables are those that its queries use', () => {
    const used = [...text.matchAll(/\$\{?(\w+)/g)].map(([, name = '']) => name);
    const known = dashboard.templating.list.map(({ name }) => name);
    expect([...new Set(used)].filter((name) => !name.startsWith('__')).sort()).toEqual(known.sort());
  });

  test('no panel covers another, and each has its own id', () => {
    const { panels } = dashboard;
    expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length);
    for (const [index, { gridPos: a, title }] of panels.entries()) {
      expect(a.x + a.w, title).toBeLessThanOrEqual(24);
      for (const { gridPos: b, title: other } of panels.slice(index + 1)) {
        const apart = a.x + a.w <= b.x || b.x + b.w <= a.x || a.y + a.h <= b.y || b.y + b.h <= a.y;
        expect(apart, `${title} and ${other}`).toBe(true);
      }
    }
  });
});

describe('docs/metrics.md', () => {
  const docs = read('docs/metrics.md');

  /** Type and help as in the code, the name as in Prometheus, and on which side there is a series. */
  function row({ name, kind, help, samples }: Family): string {
    const shown = name + (kind === 'counter' ? '_total' : kind === 'info' ? '_info' : '');
    const extra = [...new Set(samples.flatMap(({ labels }) => Object.keys(labels)))].filter(
      (label) => label !== 'vm',
    );
    const sides = ['web1', 'db'].map((vm) => samples.some(({ labels }) => labels['vm'] === vm));
    const side = sides[0] === sides[1] ? 'both' : sides[0] ? 'primary' : 'secondary';
    const quantile = kind === 'summary' ? ['quantile'] : [];
    const labels = [...extra, ...quantile].map((label) => `\`${label}\``).join(', ');
    return `| \`${shown}\` | ${kind} | ${labels} | ${side} | ${help} |`;
  }

  test('its table is what the code has', () => {
    const rows = docs.split('\n').filter((line) => line.startsWith('| `colo_agent_'));
    expect(rows).toEqual(FAMILIES.map(row));
  });

  test('its text names no other metrics', () => {
    expect(unknownIn(docs).filter((name) => !FAMILIES.some((family) => family.name === name))).toEqual([]);
  });
});
