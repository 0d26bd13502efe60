/** What the page's own modules reckon; the rest is seen in a browser (test/e2e/web.test.ts). */
import { expect, test } from 'vitest';
import { count, duration, moment, per, size } from '../../web/format.js';
import { spansOf } from '../../web/spans.js';

const text = (shown: string) => shown.replaceAll('\u00a0', ' ');

test.each([
  [null, '–'],
  [0, '0 ms'],
  [2.345, '2.3 ms'],
  [99.94, '99.9 ms'],
  [99.96, '100 ms'],
  [999.4, '999 ms'],
  [1500, '1.5 s'],
  [119_000, '119 s'],
  [150_000, '2.5 min'],
  [7_200_000, '2 h'],
])('a duration of %s ms: %s', (ms, shown) => expect(text(duration(ms))).toBe(shown));

test.each([
  [null, '–'],
  [0, '0 B'],
  [999, '999 B'],
  [999.7, '1 kB'],
  [1_234_567, '1.2 MB'],
  [5e15, '5,000 TB'],
])('a size of %s bytes: %s', (bytes, shown) => expect(text(size(bytes))).toBe(shown));

test('rates and counts; what is not there has no unit', () => {
  expect(per(count(12_345.6), 's')).toBe('12,346/s');
  expect(per(count(null), 's')).toBe('–');
});

test('an event has its day unless it was today', () => {
  const now = new Date(2026, 10, 27, 12).getTime();
  expect(moment(new Date(2026, 10, 27, 9, 5, 7).toISOString(), now)).toBe('09:05:07');
  expect(moment(new Date(2026, 10, 26, 9, 5, 7).toISOString(), now)).toBe('2026-11-26 09:05:07');
});

test('states follow each other; what was over before the window isn’t there, what lasts into it is cut', () => {
  const event = (atMs: number, state: string) => ({
    id: atMs,
    time: new Date(atMs).toISOString(),
    vm: 'a',
    role: null,
    state,
    reason: '',
  });
  const events = [
    event(0, 'STARTING'),
    event(50, 'SYNCING'),
    event(150, 'PROTECTED'),
    event(160, 'PROTECTED'),
    event(180, 'EXPOSED'),
  ];
  expect(spansOf(events, 100, 200).map(({ state, fromMs, toMs }) => [state, fromMs, toMs])).toEqual([
    ['SYNCING', 100, 150],
    ['PROTECTED', 150, 180],
    ['EXPOSED', 180, 200],
  ]);
  expect(spansOf([], 100, 200)).toEqual([]);
});
