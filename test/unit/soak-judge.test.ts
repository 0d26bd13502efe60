/** What npm run soak takes for flat. */
import { describe, expect, test } from 'vitest';
import { type GROWTH_MAX, judge, SAMPLES_MIN } from '../../scripts/soak-judge.mjs';

type Figures = Partial<Record<keyof typeof GROWTH_MAX, number>>;

function rowsOf(count: number, figures: (index: number) => Figures) {
  return judge(
    Array.from({ length: count }, (_, index) => ({ who: 'agent', when: 'idle', figures: figures(index) })),
  );
}

describe('a run of samples', () => {
  test('that only swings is flat', () => {
    const rows = rowsOf(60, (index) => ({ fds: 20 + (index % 7), rssMiB: 100 + 20 * Math.sin(index) }));
    expect(rows.map(({ measure, flat }) => [measure, flat])).toEqual([
      ['fds', true],
      ['rssMiB', true],
    ]);
  });

  test('may grow until everything has been used once', () => {
    expect(rowsOf(40, (index) => ({ rssMiB: Math.min(index, 9) * 10 }))[0]?.flat).toBe(true);
  });

  test('that loses one descriptor in ten cycles is not', () => {
    expect(rowsOf(50, (index) => ({ fds: 20 + Math.floor(index / 10) }))[0]).toMatchObject({
      series: 'agent, idle',
      flat: false,
      max: 0,
    });
  });

  test('that keeps half a MiB of every cycle is not', () => {
    expect(rowsOf(100, (index) => ({ rssMiB: 100 + index / 2 }))[0]?.flat).toBe(false);
  });

  test('is told apart from that of another situation', () => {
    const samples = Array.from({ length: 40 }, (_, index) => ({
      who: 'agent',
      when: index % 2 === 0 ? 'protected' : 'left',
      figures: { fds: index % 2 === 0 ? 30 : 10 },
    }));
    expect(judge(samples).map(({ series, flat }) => [series, flat])).toEqual([
      ['agent, protected', true],
      ['agent, left', true],
    ]);
  });

  test('of a few samples says nothing', () => {
    expect(() => rowsOf(SAMPLES_MIN - 1, () => ({ fds: 1 }))).toThrow('let it run for longer');
  });
});
