import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parseJson, stringifyJson } from '../../src/qmp/json.ts';
import { LineSplitter } from '../../src/qmp/lines.ts';

/** Forces the exact parser: JSON.parse alone serves lines without long runs of digits. */
const exactly = (text: string) => (parseJson(`[9007199254740992,${text}]`) as unknown[])[1];

/** What JSON.parse would have made of it. */
const rounded = (value: unknown): unknown => {
  if (typeof value === 'bigint') return Number(value);
  if (Array.isArray(value)) return value.map(rounded);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, member]) => [key, rounded(member)]));
};

describe('parseJson', () => {
  it.each([
    ['9007199254740991', 9007199254740991],
    ['9007199254740992', 9007199254740992n],
    ['-9007199254740992', -9007199254740992n],
    ['18446744073709551615', 18446744073709551615n],
    ['-9223372036854775808', -9223372036854775808n],
    ['12345678901234567890.5', 12345678901234567000],
    ['1234567890123456e3', 1234567890123456e3],
    ['"1234567890123456789"', '1234567890123456789'],
    ['"\\"1234567890123456789\\\\"', '"1234567890123456789\\'],
  ])('reads %s without loss', (text, value) => {
    expect(parseJson(text)).toStrictEqual(value);
    expect(parseJson(`{"a":[${text}]}`)).toStrictEqual({ a: [value] });
  });

  it('reads everything else as JSON.parse does', () => {
    fc.assert(
      fc.property(fc.json({ maxDepth: 5 }), fc.constantFrom(0, 1, 3), (text, indent) => {
        const value = JSON.parse(text);
        expect(rounded(exactly(JSON.stringify(value, null, indent)))).toStrictEqual(value);
      }),
    );
  });

  it('accepts exactly what JSON.parse accepts', () => {
    const fragment = fc.constantFrom(
      '{',
      '}',
      '[',
      ']',
      ',',
      ':',
      '"',
      '\\',
      '0',
      '01',
      '-',
      '1.',
      'e',
      'true',
      'nul',
      ' ',
      '"a"',
      '\t',
      '\u0001',
    );
    fc.assert(
      fc.property(fc.array(fragment, { maxLength: 12 }), (fragments) => {
        const rest = fragments.join('');
        let expected: unknown[];
        try {
          expected = JSON.parse(`[0,${rest}]`) as unknown[];
        } catch {
          expect(() => parseJson(`[9007199254740993,${rest}]`)).toThrow(SyntaxError);
          return;
        }
        expect(parseJson(`[9007199254740993,${rest}]`)).toStrictEqual(expected.with(0, 9007199254740993n));
      }),
      { numRuns: 2000 },
    );
  });

  it('keeps a member named __proto__ a member', () => {
    const value = parseJson('{"__proto__":{"polluted":1},"big":9007199254740993}') as object;
    expect(Object.keys(value)).toEqual(['__proto__', 'big']);
    expect('polluted' in value).toBe(false);
  });

  it('refuses depth that would exhaust the stack', () => {
    const deep = (levels: number) => `[9007199254740993,${'['.repeat(levels)}${']'.repeat(levels)}]`;
    expect(() => parseJson(deep(1000))).not.toThrow();
    expect(() => parseJson(deep(1_000_000))).toThrow(/nested deeper/);
  });

  it.each([
    '',
    ' ',
    '{',
    '9007199254740993x',
    '[9007199254740993',
    '{"a":9007199254740993,}',
    '"9007199254740993',
    '-',
  ])('refuses %j', (text) => {
    expect(() => parseJson(text)).toThrow(SyntaxError);
  });
});

describe('stringifyJson', () => {
  it('writes what parseJson reads back, 64-bit integers too', () => {
    const { value } = fc.letrec((tie) => ({
      value: fc.oneof(
        fc.string({ unit: 'binary' }),
        fc.boolean(),
        fc.constant(null),
        fc.maxSafeInteger(),
        fc.bigInt({ min: 2n ** 53n, max: 2n ** 64n - 1n }),
        fc.array(tie('value'), { maxLength: 4 }),
        fc.dictionary(fc.string(), tie('value'), { maxKeys: 4, noNullPrototype: true }),
      ),
    }));
    fc.assert(
      fc.property(value, (original) => {
        expect(parseJson(stringifyJson(original))).toStrictEqual(original);
      }),
    );
  });

  it('leaves undefined members out', () => {
    expect(stringifyJson({ a: undefined, b: 1n })).toBe('{"b":1}');
  });

  it.each([[undefined], [Number.NaN], [Number.POSITIVE_INFINITY], [() => 1], [[undefined]]])(
    'refuses %s',
    (value) => {
      expect(() => stringifyJson(value)).toThrow(TypeError);
    },
  );
});

describe('LineSplitter', () => {
  it('finds the same lines however the bytes are cut', () => {
    fc.assert(
      fc.property(
        fc.array(fc.string({ unit: 'binary' }).map((line) => line.replaceAll('\n', ''))),
        fc.array(fc.nat(40)),
        (lines, cuts) => {
          const bytes = Buffer.from(lines.map((line) => `${line}\n`).join(''));
          const splitter = new LineSplitter();
          const found: string[] = [];
          let at = 0;
          for (const length of [...cuts, bytes.length]) {
            found.push(...splitter.push(bytes.subarray(at, at + length)));
            at += length;
          }
          expect(found).toEqual(lines.map((line) => Buffer.from(line).toString()));
        },
      ),
    );
  });

  it('refuses a line that is too long before it has ended', () => {
    const splitter = new LineSplitter(10);
    expect([...splitter.push(Buffer.from('0123456789'))]).toEqual([]);
    expect(() => [...splitter.push(Buffer.from('x'))]).toThrow(RangeError);
  });

  it('refuses what is not UTF-8', () => {
    expect(() => [...new LineSplitter().push(Buffer.from([0x22, 0xff, 0x22, 0x0a]))]).toThrow(TypeError);
  });
});
