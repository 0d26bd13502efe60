/** What `colo-agent top` makes of what it sees; the terminal itself is in test/e2e/serve.test.ts. */
import { stripVTControlCharacters } from 'node:util';
import { describe, expect, test } from 'vitest';
import type { Status } from '../../src/agent/status.ts';
import { frame, plainTable, type View } from '../../src/top/frame.ts';
import { type Look, type Row, rowOf, sorted } from '../../src/top/rows.ts';

const VIEW: View = {
  columns: 80,
  lines: 24,
  colours: false,
  sort: 'name',
  scroll: 0,
  clock: '16:03:12',
  trouble: null,
};

function row(more: Partial<Row> = {}): Row {
  return {
    vm: 'web1',
    role: 'primary',
    state: 'PROTECTED',
    reason: 'checkpoints follow each other',
    ageMs: 84,
    pauseMs: { p50: 2.84, p99: 12.9 },
    dirtyPagesPerSecond: 4321,
    bytesPerSecond: 31_400_000,
    heldBytes: 1840,
    ...more,
  };
}

function primary(more: object): Status {
  const status = {
    vm: 'web1',
    role: 'primary',
    state: 'PROTECTED',
    reason: 'r',
    agentPid: 7,
    lastCheckpointAgeMs: 84,
    pauseMs: { p50: 2.8, p99: 12.9 },
    dirtyPages: { total: 1000 },
    sentBytes: 5000,
    heldBytes: 10,
  };
  return { ...status, ...more } as unknown as Status;
}

function look(atMs: number, status: Status | null): Look {
  return {
    vm: 'web1',
    atMs,
    status,
    role: status?.role ?? null,
    state: status?.state ?? 'WAITING',
    reason: 'r',
  };
}

describe('rates', () => {
  test('are differences of counters by the time between', () => {
    const before = look(1000, primary({}));
    const now = look(1500, primary({ dirtyPages: { total: 1600 }, sentBytes: 9000 }));
    expect(rowOf(now, before)).toMatchObject({
      dirtyPagesPerSecond: 1200,
      bytesPerSecond: 8000,
      heldBytes: 10,
    });
    expect(rowOf(now, null)).toMatchObject({ dirtyPagesPerSecond: null, bytesPerSecond: null, ageMs: 84 });
  });

  test.each([
    ['another agent', { agentPid: 8, sentBytes: 9000 }],
    ['another role', { role: 'secondary', receivedBytes: 9000 }],
    ['a counter that began anew', { sentBytes: 1, dirtyPages: { total: 0 } }],
  ])('of %s there are none', (_, more) => {
    const now = look(2000, primary(more));
    expect(rowOf(now, look(1000, primary({})))).toMatchObject({
      dirtyPagesPerSecond: null,
      bytesPerSecond: null,
    });
  });

  test('a standby tells what it receives; of an agent that does not run there is no figure', () => {
    const standby = (receivedBytes: number) => primary({ role: 'secondary', receivedBytes });
    const receiving = rowOf(look(2000, standby(4096)), look(1000, standby(0)));
    expect(receiving).toMatchObject({ bytesPerSecond: 4096, dirtyPagesPerSecond: null, heldBytes: null });
    expect(rowOf(look(2000, null), look(1000, primary({})))).toMatchObject({ state: 'WAITING', ageMs: null });
  });
});

describe('the frame', () => {
  test('of 80 columns', () => {
    const standby = row({ vm: 'db', role: 'secondary', state: 'STANDBY', pauseMs: { p50: null, p99: null } });
    const rows = [row(), { ...standby, dirtyPagesPerSecond: null, heldBytes: null, ageMs: 312_000 }];
    expect(frame(rows, VIEW)).toEqual([
      'colo-agent top  16:03:12  2 VMs, 1 PROTECTED, 1 STANDBY',
      'VM               ROLE    STATE          AGE PAUSE p50/99 DIRTY/s    B/s   HELD',
      'db               standby STANDBY         5m            -       -    31M      -',
      'web1             primary PROTECTED     0.1s     2.8/13ms    4.3k    31M   1.8k',
      'q quit  s sort: [name] pause dirty',
    ]);
    expect(plainTable(rows, 80)).toEqual(frame(rows, VIEW).slice(1, -1));
  });

  const STRANGE = row({
    vm: 'a-name-that-is-as-long-as-a-name-may-be-which-is-63-letters-long',
    state: 'NO ANSWER',
    reason: 'Grüße \x1b[2J\n漢字 and so on, for longer than any terminal is wide, and then some more words',
    pauseMs: { p50: 1234.5, p99: 98_765 },
    ageMs: 1e9,
    dirtyPagesPerSecond: 9.994e5,
    bytesPerSecond: 1e13,
    heldBytes: 9949,
  });

  test.each([0, 1, 10, 26, 40, 79, 80, 99, 100, 132, 250])(
    'never wider than the terminal: %i columns',
    (columns) => {
      for (const colours of [false, true]) {
        for (const line of frame([STRANGE, row()], { ...VIEW, columns, colours })) {
          const shown = stripVTControlCharacters(line);
          expect(shown.length).toBeLessThanOrEqual(columns);
          expect(shown).toMatch(/^[\x20-\x7e]*$/);
        }
      }
    },
  );

  test('a wide terminal shows reasons, and colours mean something', () => {
    const [, , line] = frame([row({ state: 'BLOCKED' })], { ...VIEW, columns: 132, colours: true });
    expect(line).toContain('\x1b[31mBLOCKED    \x1b[0m');
    expect(line).toContain(' checkpoints follow each other');
  });

  const many = Array.from({ length: 40 }, (_, index) => row({ vm: `vm${String(index).padStart(2, '0')}` }));

  test('40 VMs on 24 lines are scrolled', () => {
    const lines = frame(many, { ...VIEW, scroll: 5 });
    expect(lines).toHaveLength(24);
    expect(lines[2]).toMatch(/^vm05 /);
    expect(lines.at(-2)).toMatch(/^vm25 /);
    expect(lines.at(-1)).toBe('q quit  s sort: [name] pause dirty  6-26 of 40, up/down');
  });

  test('no VM, and hardly a terminal', () => {
    expect(frame([], VIEW)[0]).toBe('colo-agent top  16:03:12  0 VMs');
    for (const lines of [0, 1, 2, 3]) expect(frame(many, { ...VIEW, lines })).toHaveLength(lines);
  });

  test('what is shown may be old', () => {
    expect(frame([row()], { ...VIEW, trouble: 'nobody answers' })[0]).toBe(
      'colo-agent top  16:03:12  nobody answers',
    );
  });
});

test('sorted by name, by the longest pauses, by the busiest', () => {
  const rows = [
    row({ vm: 'c', pauseMs: { p50: 1, p99: 5 }, dirtyPagesPerSecond: 1 }),
    row({ vm: 'a', pauseMs: { p50: null, p99: null }, dirtyPagesPerSecond: 7 }),
    row({ vm: 'b', pauseMs: { p50: 1, p99: 9 }, dirtyPagesPerSecond: null }),
  ];
  const names = (by: Parameters<typeof sorted>[1]) =>
    sorted(rows, by)
      .map(({ vm }) => vm)
      .join('');
  expect([names('name'), names('pause'), names('dirty')]).toEqual(['abc', 'bca', 'acb']);
});
