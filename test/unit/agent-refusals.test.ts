import { expect, test } from 'vitest';
import { Log } from '../../src/agent/log.ts';
import { Refusals } from '../../src/agent/refusals.ts';

test('a flood of strangers is twenty lines a minute, and a number', () => {
  const lines: { peer: string; unsaid?: number }[] = [];
  const log = new Log(
    'warn',
    () => ({}),
    (line) => lines.push(JSON.parse(line)),
  );
  let nowMs = 0;
  const refusals = new Refusals(log, () => nowMs);
  for (let i = 0; i < 1000; i++) refusals.tell(`10.0.0.1:${i}`, 'no preface');
  expect(lines).toHaveLength(20);
  expect(lines.every(({ unsaid }) => unsaid === undefined)).toBe(true);
  nowMs = 59_999;
  refusals.tell('10.0.0.2:1', 'no preface');
  expect(lines).toHaveLength(20);
  nowMs = 60_000;
  refusals.tell('10.0.0.2:2', 'no preface');
  refusals.tell('10.0.0.2:3', 'no preface');
  expect(lines.slice(20)).toMatchObject([{ peer: '10.0.0.2:2', unsaid: 981 }, { peer: '10.0.0.2:3' }]);
});
