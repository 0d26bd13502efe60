/** What is written for Prometheus, held against promtool and against a strict parser of OpenMetrics. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { TAKE_OVER_BOUNDS_MS } from '../../src/agent/durations.ts';
import type { Status } from '../../src/agent/status.ts';
import { exposition, type Family } from '../../src/metrics/exposition.ts';
import { familiesOf } from '../../src/metrics/families.ts';
import { formatFor } from '../../src/metrics/negotiation.ts';
import type { Reading } from '../../src/metrics/readings.ts';
import { STATE_WORDS } from '../../src/protocol/machine.ts';
import { parseOpenMetrics } from '../support/openmetrics.ts';
import { promtool } from '../support/promtool.ts';
import { counted, primaryStatus, secondaryStatus } from '../support/statuses.ts';

function readings(...of: [string, Status | string][]): Map<string, Reading> {
  return new Map(
    of.map(([vm, what]) => [vm, typeof what === 'string' ? { failure: what } : { status: what }]),
  );
}

const SEVERAL = readings(
  ['web1', primaryStatus()],
  ['db', secondaryStatus({ vm: 'db', takeOvers: counted(TAKE_OVER_BOUNDS_MS, 180, 400_000) })],
  [
    'copying',
    primaryStatus({ state: 'SYNCING', syncPercent: 42, syncSecondsLeft: 9, lastCheckpointAgeMs: null }),
  ],
  [
    'bare',
    primaryStatus({
      link: null,
      heartbeat: null,
      witness: { kind: 'manual', node: 'a', answers: null, reason: '' },
      tracker: null,
      disks: [],
    }),
  ],
  ['gone', 'no colo-agent answers'],
);

const FAMILIES = familiesOf(SEVERAL, '1.2.3');

function sampleLines(text: string): string[] {
  return text.split('\n').filter((line) => line !== '' && !line.startsWith('#'));
}

describe('the exposition of statuses', () => {
  const families = parseOpenMetrics(exposition(FAMILIES, 'openmetrics'));
  const value = (name: string, labels: Record<string, string>): number | undefined =>
    [...families.values()]
      .flatMap(({ samples }) => samples)
      .find(
        (sample) =>
          sample.name === `colo_agent_${name}` &&
          sample.labels.size === Object.keys(labels).length &&
          Object.entries(labels).every(([label, word]) => sample.labels.get(label) === word),
      )?.value;

  test('promtool has nothing to say against it', () => {
    expect(promtool(['check', 'metrics'], exposition(FAMILIES, 'text'))).toEqual({ code: 0, output: '' });
  });

  test('both formats have the same series, under the same names', () => {
    expect(sampleLines(exposition(FAMILIES, 'openmetrics'))).toEqual(
      sampleLines(exposition(FAMILIES, 'text')),
    );
  });

  test('every figure is where it belongs, in seconds, bytes and ratios', () => {
    const vm = 'web1';
    expect(value('build_info', { version: '1.2.3' })).toBe(1);
    expect(value('generation', { vm })).toBe(7);
    expect(value('epoch', { vm })).toBe(4711);
    expect(value('last_checkpoint_age_seconds', { vm })).toBe(0.045);
    expect(value('checkpoints_total', { vm })).toBe(4);
    expect(value('link_up', { vm })).toBe(1);
    expect(value('peer_certificate_expiry_timestamp_seconds', { vm })).toBe(1893456000);
    expect(value('witness_up', { vm })).toBe(1);
    expect(value('heartbeats_sent_total', { vm })).toBe(51);
    expect(value('heartbeats_received_total', { vm })).toBe(52);
    expect(value('heartbeat_rtt_seconds', { vm, quantile: '0.99' })).toBe(0.00025);
    expect(value('heartbeat_gap_seconds', { vm, quantile: '1.0' })).toBe(0.075);
    expect(value('pause_duration_seconds_bucket', { vm, le: '0.003' })).toBe(1);
    expect(value('pause_duration_seconds_bucket', { vm, le: '0.004' })).toBe(3);
    expect(value('pause_duration_seconds_bucket', { vm, le: '1.0' })).toBe(4);
    expect(value('pause_duration_seconds_sum', { vm })).toBe(0.01725);
    expect(value('checkpoint_duration_seconds_bucket', { vm, le: '10.0' })).toBe(3);
    expect(value('checkpoint_duration_seconds_count', { vm })).toBe(4);
    expect(value('dirty_pages_total', { vm })).toBe(1400);
    expect(value('sent_bytes_total', { vm })).toBe(150_000);
    expect(value('checkpoint_wire_bytes_total', { vm })).toBe(16_000);
    expect(value('checkpoint_raw_bytes_total', { vm })).toBe(170_000);
    expect(value('held_frames', { vm })).toBe(18);
    expect(value('held_bytes', { vm })).toBe(1900);
    expect(value('dropped_frames_total', { vm })).toBe(2);
    expect(value('tracker', { vm, tracker: 'userfaultfd' })).toBe(1);
    expect(value('tracker', { vm, tracker: 'compare' })).toBe(0);
    expect(value('scrub_rounds_total', { vm })).toBe(21);
    expect(value('scrub_checked_pages_total', { vm })).toBe(23);
    expect(value('scrub_skipped_pages_total', { vm })).toBe(24);
    expect(value('scrub_differences_total', { vm })).toBe(1);
    expect(value('disk_differing_bytes', { vm })).toBe(256);
    expect(value('disk_logged_bytes', { vm })).toBe(512);
    expect(value('disk_writes_total', { vm })).toBe(66);
    expect(value('sync_ratio', { vm })).toBeUndefined();
    expect(value('sync_ratio', { vm: 'copying' })).toBe(0.42);
    expect(value('sync_remaining_seconds', { vm: 'copying' })).toBe(9);
    expect(value('received_bytes_total', { vm: 'db' })).toBe(150_001);
    expect(value('flush_duration_seconds_sum', { vm: 'db' })).toBe(0.003);
    expect(value('load_duration_seconds_bucket', { vm: 'db', le: '0.03' })).toBe(1);
    expect(value('failover_duration_seconds_bucket', { vm: 'db', le: '0.2' })).toBe(1);
    expect(value('failover_duration_seconds_bucket', { vm: 'db', le: '300.0' })).toBe(1);
    expect(value('failover_duration_seconds_count', { vm: 'db' })).toBe(2);
    expect(value('failover_duration_seconds_count', { vm })).toBe(0);
  });

  test('one state and one role of each VM is 1', () => {
    for (const [vm, state] of [
      ['web1', 'PROTECTED'],
      ['db', 'STANDBY'],
      ['copying', 'SYNCING'],
    ]) {
      for (const word of STATE_WORDS)
        expect(value('state', { vm: `${vm}`, state: word })).toBe(Number(word === state));
    }
    expect(value('role', { vm: 'db', role: 'secondary' })).toBe(1);
    expect(value('role', { vm: 'db', role: 'primary' })).toBe(0);
  });

  test('of a VM whose agent does not answer there is nothing but that', () => {
    const told = exposition(FAMILIES, 'text')
      .split('\n')
      .filter((line) => line.includes('vm="gone"'));
    expect(told).toEqual(['colo_agent_up{vm="gone"} 0']);
    expect(value('up', { vm: 'web1' })).toBe(1);
  });

  test('of one whose agent does not run there is what the daemon says, too', () => {
    const resting = { role: null, state: 'REFUSED' } as const;
    const readings = new Map([
      ['resting', { failure: 'no key', resting, restarts: 3 }],
      ['web1', { status: primaryStatus(), restarts: 0 }],
    ]);
    const told = exposition(familiesOf(readings, '1.2.3'), 'text').split('\n');
    const lines = told.filter((line) => line.includes('vm="resting"') && !/state=.* 0$/.test(line));
    expect(lines).toEqual([
      'colo_agent_up{vm="resting"} 0',
      'colo_agent_state{vm="resting",state="REFUSED"} 1',
      'colo_agent_restarts_total{vm="resting"} 3',
    ]);
    expect(told).toContain('colo_agent_restarts_total{vm="web1"} 0');
  });

  test('what there is nothing to tell of has no series', () => {
    const bare = exposition(FAMILIES, 'text')
      .split('\n')
      .filter((line) => line.includes('vm="bare"'))
      .join('\n');
    expect(bare).not.toMatch(
      /heartbeat|witness|certificate|sync_|received_bytes|flush|load|null|NaN|undefined/,
    );
    expect(value('link_up', { vm: 'bare' })).toBe(0);
    expect(value('tracker', { vm: 'bare', tracker: 'compare' })).toBe(0);
    expect(value('disk_writes_total', { vm: 'bare' })).toBe(0);
  });

  test('no VM at all', () => {
    const none = familiesOf(new Map(), '1.2.3');
    expect([...parseOpenMetrics(exposition(none, 'openmetrics')).keys()]).toEqual(['colo_agent_build']);
    expect(promtool(['check', 'metrics'], exposition(none, 'text'))).toEqual({ code: 0, output: '' });
  });
});

describe('the writer', () => {
  test('a family of each kind, in both formats', () => {
    const families: Family[] = [
      {
        name: 'a_build',
        kind: 'info',
        help: 'What it is.',
        samples: [{ labels: { version: '1' }, value: 1 }],
      },
      { name: 'a_sent_bytes', kind: 'counter', help: 'Sent.', samples: [{ labels: { vm: 'x' }, value: 5 }] },
      { name: 'a_age_seconds', kind: 'gauge', help: 'Age.', samples: [{ labels: {}, value: 0.5 }] },
      {
        name: 'a_pause_seconds',
        kind: 'histogram',
        help: 'Pauses.',
        samples: [{ labels: { vm: 'x' }, value: { bounds: [0.5, 1], counts: [2, 1, 4], sum: 9.25 } }],
      },
      { name: 'a_rtt_seconds', kind: 'summary', help: 'Trips.', samples: [{ labels: {}, value: [[1, 2]] }] },
      { name: 'a_none', kind: 'gauge', help: 'Nothing.', samples: [] },
    ];
    const samples = {
      info: 'a_build_info{version="1"} 1',
      counter: 'a_sent_bytes_total{vm="x"} 5',
      gauge: 'a_age_seconds 0.5',
      histogram: [
        'a_pause_seconds_bucket{vm="x",le="0.5"} 2',
        'a_pause_seconds_bucket{vm="x",le="1.0"} 3',
        'a_pause_seconds_bucket{vm="x",le="+Inf"} 7',
        'a_pause_seconds_count{vm="x"} 7',
        'a_pause_seconds_sum{vm="x"} 9.25',
      ],
      summary: 'a_rtt_seconds{quantile="1.0"} 2',
    };
    expect(exposition(families, 'text').split('\n')).toEqual([
      '# HELP a_build_info What it is.',
      '# TYPE a_build_info gauge',
      samples.info,
      '# HELP a_sent_bytes_total Sent.',
      '# TYPE a_sent_bytes_total counter',
      samples.counter,
      '# HELP a_age_seconds Age.',
      '# TYPE a_age_seconds gauge',
      samples.gauge,
      '# HELP a_pause_seconds Pauses.',
      '# TYPE a_pause_seconds histogram',
      ...samples.histogram,
      '# HELP a_rtt_seconds Trips.',
      '# TYPE a_rtt_seconds summary',
      samples.summary,
      '',
    ]);
    expect(exposition(families, 'openmetrics').split('\n')).toEqual([
      '# TYPE a_build info',
      '# HELP a_build What it is.',
      samples.info,
      '# TYPE a_sent_bytes counter',
      '# UNIT a_sent_bytes bytes',
      '# HELP a_sent_bytes Sent.',
      samples.counter,
      '# TYPE a_age_seconds gauge',
      '# UNIT a_age_seconds seconds',
      '# HELP a_age_seconds Age.',
      samples.gauge,
      '# TYPE a_pause_seconds histogram',
      '# UNIT a_pause_seconds seconds',
      '# HELP a_pause_seconds Pauses.',
      ...samples.histogram,
      '# TYPE a_rtt_seconds summary',
      '# UNIT a_rtt_seconds seconds',
      '# HELP a_rtt_seconds Trips.',
      samples.summary,
      '# EOF',
      '',
    ]);
  });

  test('whatever stands in a label or a help comes back', () => {
    const text = fc.string({
      unit: fc.constantFrom('\\', '"', '\n', 'n', 'ü', '{', '}', ',', '=', '#', ' '),
    });
    fc.assert(
      fc.property(text, fc.string(), (help, label) => {
        const family: Family = {
          name: 'x',
          kind: 'gauge',
          help: `h${help}`,
          samples: [{ labels: { label }, value: 1 }],
        };
        const parsed = parseOpenMetrics(exposition([family], 'openmetrics')).get('x');
        expect(parsed?.help).toBe(`h${help}`);
        expect(parsed?.samples[0]?.labels.get('label')).toBe(label);
      }),
    );
    const odd: Family = {
      name: 'x',
      kind: 'gauge',
      help: 'a\\b\n"c"',
      samples: [{ labels: { l: 'a\\b\n"c"' }, value: 1 }],
    };
    expect(promtool(['check', 'metrics'], exposition([odd], 'text'))).toEqual({ code: 0, output: '' });
  });

  test('numbers of any size come back', () => {
    fc.assert(
      fc.property(fc.double(), (value) => {
        const family: Family = { name: 'x', kind: 'gauge', help: 'h', samples: [{ labels: {}, value }] };
        const read = parseOpenMetrics(exposition([family], 'openmetrics')).get('x')?.samples[0]?.value;
        expect(read === 0 ? 0 : read).toEqual(value === 0 ? 0 : value);
      }),
    );
  });

  const sample = { labels: { vm: 'x' }, value: 1 };
  test.each<[string, Family[]]>([
    ['a name with a suffix', [{ name: 'a_total', kind: 'counter', help: 'h', samples: [sample] }]],
    ['no name', [{ name: 'a-b', kind: 'gauge', help: 'h', samples: [sample] }]],
    ['a family twice', ['gauge', 'gauge'].map(() => ({ name: 'a', kind: 'gauge', help: 'h', samples: [] }))],
    ['a series twice', [{ name: 'a', kind: 'gauge', help: 'h', samples: [sample, sample] }]],
    ['a negative counter', [{ name: 'a', kind: 'counter', help: 'h', samples: [{ labels: {}, value: -1 }] }]],
    [
      'a counter that is no number',
      [{ name: 'a', kind: 'counter', help: 'h', samples: [{ labels: {}, value: NaN }] }],
    ],
    ['a number as histogram', [{ name: 'a', kind: 'histogram', help: 'h', samples: [sample] }]],
    ['no label', [{ name: 'a', kind: 'gauge', help: 'h', samples: [{ labels: { 'a b': '' }, value: 1 }] }]],
    [
      'a count too few',
      [
        {
          name: 'a',
          kind: 'histogram',
          help: 'h',
          samples: [{ labels: {}, value: { bounds: [1], counts: [1], sum: 1 } }],
        },
      ],
    ],
  ])('refuses %s', (_what, families) => {
    expect(() => exposition(families, 'text')).toThrow();
  });
});

describe('the strict parser', () => {
  test.each([
    ['no end', '# TYPE a gauge\na 1\n'],
    ['an empty line', '# TYPE a gauge\n\na 1\n# EOF\n'],
    ['interleaved', '# TYPE a gauge\na 1\n# TYPE b gauge\nb 1\na{x="1"} 1\n# EOF\n'],
    ['a counter without _total', '# TYPE a counter\na 1\n# EOF\n'],
    ['a unit that is not in the name', '# TYPE a gauge\n# UNIT a seconds\na 1\n# EOF\n'],
    ['an unknown escape', '# TYPE a gauge\na{x="\\t"} 1\n# EOF\n'],
    [
      'a bound that is no float',
      '# TYPE a histogram\na_bucket{le="1"} 1\na_bucket{le="+Inf"} 1\na_count 1\na_sum 1\n# EOF\n',
    ],
    [
      'fewer in a longer bucket',
      '# TYPE a histogram\na_bucket{le="1.0"} 2\na_bucket{le="+Inf"} 1\na_count 1\na_sum 1\n# EOF\n',
    ],
    ['a series twice', '# TYPE a gauge\na 1\na 1\n# EOF\n'],
  ])('refuses %s', (_what, text) => {
    expect(() => parseOpenMetrics(text)).toThrow();
  });
});

describe('the format', () => {
  test.each([
    [undefined, 'text'],
    ['*/*', 'text'],
    ['text/plain', 'text'],
    ['application/openmetrics-text', 'openmetrics'],
    ['application/openmetrics-text; version=0.0.1', 'text'],
    [
      'application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1',
      'openmetrics',
    ],
    ['application/openmetrics-text;version=1.0.0;q=0.5;escaping=allow-utf-8,text/plain;q=0.6', 'text'],
    ['application/openmetrics-text;q=0', 'text'],
    ['application/openmetrics-text;q=nonsense', 'text'],
    [';;=,,;q', 'text'],
  ] as const)('for Accept: %s', (accept, format) => {
    expect(formatFor(accept)).toBe(format);
  });
});
