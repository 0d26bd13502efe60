/** Inputs for decoders, made by changing valid ones: no coverage guides it, so it keeps whatever a decoder has answered in a new way. */
import type { Random } from '../sim/clock.ts';

const POOL_MAX = 400;
const INPUT_BYTES_MAX = 64 * 1024;
const REPEATS_MAX = 3000;
const BYTES = [0, 1, 0x0a, 0x20, 0x22, 0x30, 0x7e, 0x7f, 0x80, 0xc0, 0xff];
const NUMBERS = [
  0n,
  1n,
  4096n,
  0x7fffffffn,
  0xffffffffn,
  1n << 52n,
  (1n << 53n) - 1n,
  1n << 53n,
  (1n << 64n) - 1n,
];
/** What the texts and the JSON that are decoded here are made of. */
const TOKENS = [
  ...[
    'null',
    'true',
    '-0',
    '1e999',
    '9007199254740993',
    '0x',
    '"__proto__"',
    '"constructor"',
    '""',
    '\\u0000',
    '\\',
  ],
  ...[
    '{',
    '}',
    '[',
    ']',
    '[[',
    '{"a":',
    ',',
    ':',
    '"',
    ' ',
    '\t',
    '\r\n',
    '\n',
    '\0',
    '\ufeff',
    '\u{1f600}',
    '\x1b[2J',
  ],
];

type Mutation = (input: Buffer, random: Random, pool: readonly Buffer[]) => Buffer;

const at = (input: Buffer, random: Random) => random.below(input.length + 1);

function replace(input: Buffer, begin: number, end: number, by: Uint8Array): Buffer {
  return Buffer.concat([input.subarray(0, begin), by, input.subarray(end)]);
}

function pick<T>(random: Random, items: readonly T[]): T {
  return items[random.below(items.length)] as T;
}

function range(input: Buffer, random: Random): [number, number] {
  const begin = at(input, random);
  const length = random.below(
    random.below(4) === 0 ? input.length - begin + 1 : Math.min(16, input.length - begin + 1),
  );
  return [begin, begin + length];
}

function number(random: Random): Buffer {
  const bytes = Buffer.alloc(8);
  const value = pick(random, NUMBERS);
  if (random.below(2) === 0) bytes.writeBigUInt64BE(value);
  else bytes.writeBigUInt64LE(value);
  const width = pick(random, [2, 4, 8]);
  return random.below(2) === 0 ? bytes.subarray(0, width) : bytes.subarray(8 - width);
}

const MUTATIONS: Mutation[] = [
  (input, random) => {
    const changed = Buffer.from(input);
    if (changed.length > 0) {
      const index = random.below(changed.length);
      changed[index] = (changed[index] as number) ^ (1 << random.below(8));
    }
    return changed;
  },
  (input, random) => {
    const begin = at(input, random);
    return replace(input, begin, Math.min(begin + 1, input.length), Buffer.from([pick(random, BYTES)]));
  },
  (input, random) => replace(input, ...range(input, random), Buffer.alloc(0)),
  (input, random) => input.subarray(0, at(input, random)),
  (input, random) => {
    const begin = at(input, random);
    const bytes = number(random);
    return replace(input, begin, Math.min(begin + bytes.length, input.length), bytes);
  },
  (input, random) => {
    const begin = at(input, random);
    return replace(input, begin, begin, Buffer.from(pick(random, TOKENS)));
  },
  (input, random) => replace(input, ...range(input, random), Buffer.from(pick(random, TOKENS))),
  // A part of it, or a token, again and again: nesting, long runs of white space, many entries.
  (input, random) => {
    const [begin, end] = range(input, random);
    const part = random.below(2) === 0 ? input.subarray(begin, end) : Buffer.from(pick(random, TOKENS));
    const times = random.below(random.below(3) === 0 ? REPEATS_MAX : 8);
    return replace(input, begin, begin, Buffer.concat(Array.from({ length: times }, () => part)));
  },
  (input, random, pool) => {
    const other = pick(random, pool);
    return replace(input, ...range(input, random), other.subarray(...range(other, random)));
  },
];

/** Where the next inputs come from. */
export class Pool {
  readonly #inputs: Buffer[];
  readonly #answers = new Set<string>();
  readonly #random: Random;

  constructor(seeds: readonly Uint8Array[], random: Random) {
    this.#inputs = seeds.map((seed) => Buffer.from(seed));
    this.#random = random;
  }

  next(): Buffer {
    const random = this.#random;
    let input = pick(random, this.#inputs);
    for (let changes = 1 + random.below(4); changes > 0; changes--)
      input = pick(random, MUTATIONS)(input, random, this.#inputs);
    return input.subarray(0, INPUT_BYTES_MAX);
  }

  /** `answer`: what the decoder said, in words; the numbers in it don't make it new. */
  learn(input: Buffer, answer: string): void {
    const shape = answer.replace(/\d+/g, '#').slice(0, 120);
    if (this.#answers.has(shape) || this.#inputs.length >= POOL_MAX) return;
    this.#answers.add(shape);
    this.#inputs.push(Buffer.from(input));
  }
}
