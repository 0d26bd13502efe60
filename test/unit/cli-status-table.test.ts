import { describe, expect, test } from 'vitest';
import { repaint } from '../../src/cli/screen.ts';
import { statusTable } from '../../src/cli/status-table.ts';
import { primaryStatus, secondaryStatus } from '../support/statuses.ts';

const RESTING = { role: null, generation: null, agentPid: null, restarts: 2 };

test('a row for each VM, whatever is known of it', () => {
  const pauseMs = { last: 4, p50: 3.1, p99: 7.9, max: 9 };
  const text = statusTable([
    { ...primaryStatus({ pauseMs, lastCheckpointAgeMs: 45 }), restarts: 0 },
    { ...secondaryStatus({ vm: 'db', lastCheckpointAgeMs: 61_234 }), restarts: 0 },
    { ...primaryStatus({ vm: 'new', lastCheckpointAgeMs: null }), restarts: 0 },
    { ...RESTING, vm: 'gone', state: 'WAITING', reason: 'no QEMU' },
    { ...RESTING, vm: 'hangs', role: 'primary', agentPid: 7, state: null, reason: 'no answer' },
  ]);
  expect(text.split('\n')).toEqual([
    'VM     ROLE       STATE      CHECKPOINT  PAUSE p50/p99  HELD         REASON',
    'web1   primary    PROTECTED  45 ms ago   3.1/7.9 ms     18 (0.0 MB)  because',
    'db     secondary  STANDBY    61 s ago    -              -            because',
    'new    primary    PROTECTED  -           -              18 (0.0 MB)  because',
    'gone   -          WAITING    -           -              -            no QEMU',
    'hangs  primary    ?          -           -              -            no answer',
  ]);
});

describe('repainting', () => {
  test('clears once, and then paints over what stands there', () => {
    expect(repaint('ab\nc', 80, 24, true)).toBe('\x1b[2J\x1b[Hab\x1b[K\nc\x1b[K\n\x1b[J');
    expect(repaint('ab', 80, 24, false)).toBe('\x1b[Hab\x1b[K\n\x1b[J');
  });

  test('is cut to the terminal', () => {
    expect(repaint('abcdef\n2\n3\n4', 4, 4, false)).toBe('\x1b[Habcd\x1b[K\n2\x1b[K\n... \x1b[K\n\x1b[J');
    expect(repaint('1\n2\n3\n4\n5', 80, 4, false)).toContain('2\x1b[K\n... and 3 more\x1b[K\n');
    expect(repaint('1\n2\n3', 80, 4, false)).toContain('3\x1b[K');
  });
});
