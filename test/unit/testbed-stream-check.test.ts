/** The test bed's judge of the counter's stream, against a slow count over whole lists. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { StreamCheck } from '../../src/testbed/stream-check.ts';

function checked(...parts: string[]): StreamCheck {
  const check = new StreamCheck();
  parts.forEach((part, i) => {
    check.push(part, i);
  });
  return check;
}

describe('StreamCheck', () => {
  test('a whole stream, cut anywhere, has no gap and no regression', () => {
    expect(checked('n=1\nn', '=2\nn=', '3', '\n', 'n=4')).toMatchObject({
      received: 3,
      gaps: 0,
      regressions: 0,
    });
  });

  test('what is missing from the beginning counts too', () => {
    expect(checked('n=3\nn=4\n')).toMatchObject({ gaps: 2, regressions: 0 });
  });

  test('a number that comes again is a regression, and so is all that follows up to where the stream was', () => {
    expect(checked('n=1\nn=2\nn=3\nn=2\nn=3\nn=4\n')).toMatchObject({ gaps: 0, regressions: 2 });
  });

  test('a line that is no number is an error', () => {
    expect(() => checked('n=1\nm=2\n')).toThrow(/not a line of the counter: "m=2"/);
  });

  test('firstAfter finds the line by its time, strictly later', () => {
    const check = checked('n=1\n', 'n=2\n', 'n=3\n');
    expect(check.firstAfter(0)).toEqual({ n: 2, atMs: 1 });
    expect(check.firstAfter(2)).toBeUndefined();
  });

  test('any numbers, cut into any parts', () => {
    const numbers = fc.array(fc.integer({ min: 1, max: 30 }), { minLength: 1, maxLength: 40 });
    fc.assert(
      fc.property(numbers, fc.array(fc.nat(200)), (list, cuts) => {
        const text = list.map((n) => `n=${n}\n`).join('');
        const edges = [0, ...cuts.map((cut) => cut % text.length).sort((a, b) => a - b), text.length];
        const check = checked(...edges.slice(1).map((edge, i) => text.slice(edges[i], edge)));
        expect(check.lines.map(({ n }) => n)).toEqual(list);
        // A record is a number above all before it: no other is progress, and what no record names is a gap.
        const records = list.filter((n, i) => list.slice(0, i).every((earlier) => earlier < n));
        expect(check.regressions).toBe(list.length - records.length);
        expect(check.gaps).toBe(Math.max(...list) - records.length);
      }),
    );
  });
});
