/** What a person or a script sees of long work, on standard error of a terminal and as JSON lines. */
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import type { PrimaryStatus, Status } from '../../src/agent/status.ts';
import { showProgress } from '../../src/cli/progress.ts';

type Shown = Pick<PrimaryStatus, 'state' | 'reason' | 'syncPercent' | 'syncSecondsLeft'>;

const STEPS: Shown[] = [
  { state: 'SYNCING', reason: 'first copy', syncPercent: 10, syncSecondsLeft: null },
  { state: 'SYNCING', reason: 'first copy', syncPercent: 60, syncSecondsLeft: 4 },
  { state: 'PROTECTED', reason: 'all is well', syncPercent: null, syncSecondsLeft: null },
  { state: 'PROTECTED', reason: 'all is well', syncPercent: null, syncSecondsLeft: null },
];

let isTty: boolean;
let shown: { stdout: string; stderr: string };
beforeEach(() => {
  isTty = process.stderr.isTTY;
  vi.useFakeTimers();
  shown = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr'] as const) {
    vi.spyOn(process[name], 'write').mockImplementation((text) => {
      shown[name] += text;
      return true;
    });
  }
});
afterEach(() => {
  process.stderr.isTTY = isTty;
  vi.useRealTimers();
  vi.restoreAllMocks();
});

function run(terminal: boolean, json: boolean): void {
  process.stderr.isTTY = terminal;
  let now = STEPS[0] as Shown;
  const progress = showProgress(() => now as Status, json);
  for (const step of STEPS) {
    now = step;
    vi.advanceTimersByTime(500);
  }
  progress.end();
  vi.advanceTimersByTime(5000);
}

test('a terminal shows how far the first copy is, on one line, and each change of state', () => {
  run(true, false);
  expect(shown.stderr.replaceAll('\r\x1b[K', '<')).toBe(
    '<first copy 10 %\nSYNCING: first copy\n<first copy 60 %, 4 s left\nPROTECTED: all is well\n',
  );
  expect(shown.stdout).toBe('');
});

test('a script gets each change of state as a line of JSON', () => {
  run(false, true);
  expect(
    shown.stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line)),
  ).toEqual([
    { state: 'SYNCING', reason: 'first copy' },
    { state: 'PROTECTED', reason: 'all is well' },
  ]);
  expect(shown.stderr).toBe('');
});

test('neither: nothing', () => {
  run(false, false);
  expect(shown).toEqual({ stdout: '', stderr: '' });
});
