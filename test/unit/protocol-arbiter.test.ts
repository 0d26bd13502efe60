/** Who may run: the arbiter's rules one by one, then against a witness that loses, delays and repeats whatever it likes. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  ABSENT_REVISION,
  Arbiter,
  type ArbiterEffect,
  type ArbiterEvent,
  type Claim,
  type Entry,
  encodeRecord,
  type Memory,
  parseRecord,
  type VmRecord,
} from '../../src/protocol/arbiter.ts';
import { GENERATION_MAX } from '../../src/protocol/messages.ts';

const [ID, OTHER_ID] = ['a'.repeat(32), 'b'.repeat(32)];

const record = (fields: Partial<VmRecord> = {}): VmRecord => ({
  format: 1,
  generation: 4,
  mode: 'alone',
  primary: 'north',
  secondary: null,
  claim: OTHER_ID,
  ...fields,
});
const protectedBy = (secondary: string, fields: Partial<VmRecord> = {}) =>
  record({ mode: 'protected', secondary, ...fields });

type Bare = ArbiterEvent extends infer E ? (E extends ArbiterEvent ? Omit<E, 'nowMs'> : never) : never;

class Bench {
  readonly arbiter: Arbiter;
  nowMs = 0;
  constructor(node: string, memory?: Memory) {
    this.arbiter = new Arbiter(node, memory);
  }
  step(event: Bare): ArbiterEffect[] {
    return this.arbiter.step({ ...event, nowMs: this.nowMs } as ArbiterEvent);
  }
  ask(claim: Claim, id = ID): ArbiterEffect[] {
    return this.step({ type: 'ask', claim, id });
  }
  answer(request: number, revision: string, held: VmRecord | null): ArbiterEffect[] {
    return this.step({ type: 'answer', request, entry: { revision, record: held } });
  }
  later(ms: number): ArbiterEffect[] {
    this.nowMs += ms;
    return this.step({ type: 'tick' });
  }
}

const ALONE: Claim = { kind: 'alone', atLeast: 1 };
const PROTECTED: Claim = { kind: 'protected', generation: 4, secondary: 'south' };
const TAKE_OVER: Claim = { kind: 'take-over', generation: 4, primary: 'north' };

describe('what a claim makes of the record', () => {
  test.each<[string, string, Claim, VmRecord | null, Partial<VmRecord>]>([
    ['alone, the first of all', 'north', { kind: 'alone', atLeast: 7 }, null, { generation: 7 }],
    ['alone, after itself', 'north', ALONE, record(), { generation: 5 }],
    ['alone, from protected', 'north', ALONE, protectedBy('south'), { generation: 5, mode: 'alone' }],
    [
      'alone, above what the host has seen',
      'north',
      { kind: 'alone', atLeast: 9 },
      record(),
      { generation: 9 },
    ],
    ['protected', 'north', PROTECTED, record(), { generation: 4, mode: 'protected', secondary: 'south' }],
    [
      'take-over',
      'south',
      TAKE_OVER,
      protectedBy('south'),
      { generation: 5, mode: 'alone', primary: 'south' },
    ],
  ])('%s', (_, node, claim, held, expected) => {
    const bench = new Bench(node);
    expect(bench.ask(claim)).toEqual([{ type: 'read', request: 1 }]);
    const [effect] = bench.answer(1, held ? '17' : ABSENT_REVISION, held);
    expect(effect).toMatchObject({ type: 'transact', expected: held ? '17' : ABSENT_REVISION });
    expect(effect?.type === 'transact' && effect.record).toMatchObject({ ...expected, claim: ID });
    // What is written can be read again.
    const written = (effect as { record: VmRecord }).record;
    expect(parseRecord(encodeRecord(written))).toEqual(written);
    expect(bench.answer(2, '18', written)).toEqual([{ type: 'won', claim, generation: written.generation }]);
  });

  test.each<[string, string, Claim, VmRecord, Memory?]>([
    ['alone, of a VM that this host has no part in', 'north', ALONE, record({ primary: 'south' })],
    ["alone, as somebody's standby", 'south', ALONE, protectedBy('south')],
    ['alone, as the standby that it was last', 'south', ALONE, protectedBy('south'), { seen: 4, won: 2 }],
    ['alone, after it was taken over', 'north', ALONE, record({ primary: 'south' }), { seen: 3, won: 3 }],
    ['protected, when it was taken over', 'north', PROTECTED, record({ primary: 'south', generation: 5 })],
    [
      'protected, when it was taken over twice',
      'north',
      PROTECTED,
      record({ primary: 'west', generation: 6 }),
    ],
    ['protected, in a generation that is over', 'north', PROTECTED, record({ generation: 5 })],
    ['protected, when it is already', 'north', PROTECTED, protectedBy('west')],
    ['take-over, when the primary went on alone', 'south', TAKE_OVER, record({ generation: 5 })],
    ['take-over, of a later generation', 'south', TAKE_OVER, protectedBy('south', { generation: 5 })],
    ['take-over, by another standby later', 'south', TAKE_OVER, record({ primary: 'east', generation: 6 })],
  ])('lost: %s', (_, node, claim, held, memory) => {
    const bench = new Bench(node, memory);
    bench.ask(claim);
    expect(bench.answer(1, '17', held)).toEqual([{ type: 'lost', claim, holder: held }]);
    expect(bench.arbiter.nextTimepointMs).toBeNull();
  });

  test.each<[string, string, Claim, VmRecord | null, RegExp, Memory?]>([
    [
      'alone, and it has gone',
      'north',
      ALONE,
      null,
      /no record .* knows of generation 3/,
      { seen: 3, won: 0 },
    ],
    [
      'alone, and it is older',
      'north',
      ALONE,
      record(),
      /has generation 4, .* knows of 9/,
      { seen: 9, won: 9 },
    ],
    [
      "alone, and an older one is another's",
      'north',
      ALONE,
      record({ primary: 'south' }),
      /has generation 4, .* knows of 9/,
      { seen: 9, won: 9 },
    ],
    [
      "alone, and its own generation is another's",
      'north',
      ALONE,
      record({ primary: 'west' }),
      /names west in generation 4, alone, which can't be so/,
      { seen: 4, won: 4 },
    ],
    ['protected, of nothing', 'north', PROTECTED, null, /no record/],
    ['protected, and it is older', 'north', PROTECTED, record({ generation: 3 }), /has generation 3/],
    [
      "protected, in another's same generation",
      'north',
      PROTECTED,
      record({ primary: 'west' }),
      /names west/,
    ],
    [
      'protected, and a stranger is next',
      'north',
      PROTECTED,
      record({ primary: 'west', generation: 5 }),
      /west/,
    ],
    ['take-over, of nothing', 'south', TAKE_OVER, null, /no record/],
    [
      'take-over, and it is older',
      'south',
      TAKE_OVER,
      protectedBy('south', { generation: 3 }),
      /has generation 3/,
    ],
    [
      'take-over, from a primary alone',
      'south',
      TAKE_OVER,
      record(),
      /names north in generation 4, alone: it wasn't told/,
    ],
    ['take-over, by another standby', 'west', TAKE_OVER, protectedBy('south'), /with south as its standby/],
    [
      'take-over, from another primary',
      'south',
      TAKE_OVER,
      protectedBy('south', { primary: 'east' }),
      /east/,
    ],
    [
      'take-over, and a stranger is next',
      'south',
      TAKE_OVER,
      record({ primary: 'east', generation: 5 }),
      /east/,
    ],
  ])('nothing is decided: %s', (_, node, claim, held, why, memory) => {
    const bench = new Bench(node, memory);
    bench.ask(claim);
    const [told, ...more] = bench.answer(1, held ? '17' : ABSENT_REVISION, held);
    expect(told).toMatchObject({ type: 'unanswered', claim, reason: expect.stringMatching(why) });
    expect(told).toMatchObject({ reason: expect.stringMatching(/--witness-prefix.*--force/) });
    expect(more).toEqual([]);
    // It looks again, at whatever is there by then.
    expect(bench.later(100)).toEqual([{ type: 'read', request: 2 }]);
  });

  test('what it has won itself counts from then on; and whom it has protected with', () => {
    const bench = new Bench('north');
    bench.ask(ALONE);
    bench.answer(1, ABSENT_REVISION, null);
    bench.answer(2, '18', record({ generation: 1, claim: ID }));
    bench.ask({ kind: 'protected', generation: 1, secondary: 'south' });
    bench.answer(3, '19', protectedBy('south', { generation: 1, claim: ID }));
    bench.ask({ kind: 'alone', atLeast: 2 }, 'd'.repeat(32));
    expect(bench.answer(4, ABSENT_REVISION, null)).toMatchObject([{ type: 'unanswered' }]);
    bench.later(100);
    expect(bench.answer(5, '21', record({ generation: 2, primary: 'west' }))).toMatchObject([
      { type: 'unanswered' },
    ]);
    bench.later(200);
    expect(bench.answer(6, '22', record({ generation: 2, primary: 'south' }))).toMatchObject([
      { type: 'lost' },
    ]);
  });

  test('with no room left for a generation it is neither won nor lost', () => {
    const bench = new Bench('north');
    bench.ask({ kind: 'alone', atLeast: GENERATION_MAX });
    expect(bench.answer(1, ABSENT_REVISION, null)).toMatchObject([{ type: 'unanswered' }]);
  });
});

describe('rounds', () => {
  test('what has been looked at saves the read', () => {
    const bench = new Bench('south');
    expect(bench.step({ type: 'look' })).toEqual([{ type: 'read', request: 1 }]);
    expect(bench.answer(1, '17', protectedBy('south'))).toEqual([]);
    expect(bench.ask(TAKE_OVER)).toMatchObject([{ type: 'transact', request: 2, expected: '17' }]);
  });

  test('what is remembered never loses a claim: it is read again', () => {
    const bench = new Bench('south');
    bench.step({ type: 'look' });
    bench.answer(1, '17', record());
    expect(bench.ask(TAKE_OVER)).toEqual([{ type: 'read', request: 2 }]);
    // An answer to the look before came late; it is older than the claim.
    expect(bench.answer(1, '17', record())).toEqual([]);
    expect(bench.answer(2, '18', protectedBy('south'))).toMatchObject([{ type: 'transact', expected: '18' }]);
  });

  test('a transaction that another was faster than is decided anew, on what is there now', () => {
    const bench = new Bench('north');
    bench.ask(ALONE);
    bench.answer(1, '17', record());
    const [again] = bench.answer(2, '18', protectedBy('south'));
    expect(again).toMatchObject({
      type: 'transact',
      expected: '18',
      record: { generation: 5, mode: 'alone' },
    });
    expect(bench.answer(3, '19', record({ primary: 'south', generation: 5 }))).toMatchObject([
      { type: 'lost' },
    ]);
  });

  test('without an answer the very same transaction is tried again, later and later', () => {
    const bench = new Bench('north');
    bench.ask(ALONE);
    const [first] = bench.answer(1, '17', record());
    const pauses: number[] = [];
    for (let round = 0; round < 8; round++) {
      const request = 2 + round;
      const [told] = bench.step({ type: 'no-answer', request, reason: 'timed out' });
      expect(told).toEqual({ type: 'unanswered', claim: ALONE, reason: 'timed out' });
      const atMs = bench.arbiter.nextTimepointMs ?? Number.NaN;
      pauses.push(atMs - bench.nowMs);
      expect(bench.later(pauses[round] as number)).toEqual([{ ...first, request: request + 1 }]);
    }
    expect(pauses).toEqual([100, 200, 400, 800, 1600, 2000, 2000, 2000]);
  });

  test('the answer of a transaction was lost: its second attempt fails, and finds that the first has won', () => {
    const bench = new Bench('north');
    bench.ask(ALONE);
    bench.answer(1, '17', record());
    bench.step({ type: 'no-answer', request: 2, reason: 'reset' });
    bench.later(100);
    expect(bench.answer(3, '18', record({ generation: 5, claim: ID }))).toEqual([
      { type: 'won', claim: ALONE, generation: 5 },
    ]);
  });

  test('a claim in place of another: only its own id counts', () => {
    const bench = new Bench('north');
    bench.ask(PROTECTED, OTHER_ID);
    bench.answer(1, '17', record({ claim: 'c'.repeat(32) }));
    bench.step({ type: 'no-answer', request: 2, reason: 'reset' });
    // The session has been lost meanwhile: whichever transaction comes first excludes the other.
    expect(bench.ask(ALONE, ID)).toMatchObject([
      { type: 'transact', expected: '17', record: { generation: 5 } },
    ]);
    const [again] = bench.answer(3, '18', protectedBy('south', { claim: OTHER_ID }));
    expect(again).toMatchObject({
      type: 'transact',
      expected: '18',
      record: { generation: 5, mode: 'alone' },
    });
  });

  test('withdrawn: no retry, and no word', () => {
    const bench = new Bench('south');
    bench.ask(TAKE_OVER);
    bench.answer(1, '17', protectedBy('south'));
    bench.step({ type: 'withdraw' });
    expect(bench.arbiter.nextTimepointMs).toBeNull();
    expect(bench.answer(2, '18', record({ primary: 'south', generation: 5, claim: ID }))).toEqual([]);
  });
});

describe("a person's word", () => {
  const SEIZE: Claim = { kind: 'seize', atLeast: 2 };

  test.each<[string, VmRecord | null, number, Memory?]>([
    ['nothing', null, 2],
    ['nothing, by who knows more', null, 8, { seen: 7, won: 3 }],
    ['its own', record(), 5],
    ['one that it has no part in', protectedBy('south', { primary: 'west' }), 6],
    ["that of its standby's", protectedBy('north', { primary: 'west' }), 5],
    ["a stranger's", record({ primary: 'west' }), 6],
  ])('is written over %s', (_, held, generation, memory) => {
    const bench = new Bench('north', memory);
    bench.ask(SEIZE);
    const [effect] = bench.answer(1, held ? '17' : ABSENT_REVISION, held);
    expect(effect).toMatchObject({
      type: 'transact',
      record: { generation, mode: 'alone', primary: 'north' },
    });
    const written = (effect as { record: VmRecord }).record;
    expect(bench.answer(2, '18', written)).toEqual([{ type: 'won', claim: SEIZE, generation }]);
  });

  test('a look shows who has been superseded, and nobody who has not', () => {
    const bench = new Bench('north');
    const look = (request: number, held: VmRecord) => {
      expect(bench.step({ type: 'look' })).toEqual([{ type: 'read', request }]);
      return bench.answer(request, '30', held);
    };
    // It has no part in it yet.
    expect(look(1, record({ primary: 'south' }))).toEqual([]);
    bench.ask({ kind: 'seize', atLeast: 4 });
    const [transact] = bench.answer(2, '17', record({ generation: 3 }));
    bench.answer(3, '18', (transact as { record: VmRecord }).record);
    expect(look(4, record({ generation: 3, primary: 'south' }))).toEqual([]);
    expect(look(5, record({ generation: 4 }))).toEqual([]);
    const holder = record({ generation: 5, primary: 'south' });
    expect(look(6, holder)).toEqual([{ type: 'superseded', holder }]);
  });

  test('a look that was begun before a claim tells nothing after it', () => {
    const bench = new Bench('north', { seen: 4, won: 4 });
    bench.step({ type: 'look' });
    bench.ask({ kind: 'seize', atLeast: 5 });
    const [transact] = bench.answer(2, '17', record({ primary: 'south', generation: 5 }));
    bench.answer(3, '18', (transact as { record: VmRecord }).record);
    expect(bench.answer(1, '17', record({ primary: 'south', generation: 9 }))).toEqual([]);
  });
});

describe('a record that is read', () => {
  test.each<[string, string]>([
    ['no JSON', 'generation 4'],
    ['no object', '4'],
    ['another format', JSON.stringify({ ...record(), format: 2 })],
    ['no generation', JSON.stringify({ ...record(), generation: 0 })],
    ['a generation without room', JSON.stringify(record({ generation: GENERATION_MAX - 1 }))],
    ['another mode', JSON.stringify({ ...record(), mode: 'both' })],
    ['no primary', JSON.stringify({ ...record(), primary: '' })],
    ['protected by nobody', JSON.stringify(record({ mode: 'protected' }))],
    ['alone with a secondary', JSON.stringify(record({ secondary: 'south' }))],
    ['no id', JSON.stringify(record({ claim: 'mine' }))],
  ])('%s', (_, text) => {
    expect(() => parseRecord(text)).toThrow(RangeError);
  });
});

// --- against a witness that does whatever a network may do ------------------------------------------------------------------------

type Transaction = Extract<ArbiterEffect, { type: 'transact' }>;

class Witness {
  entry: Entry = { revision: ABSENT_REVISION, record: null };
  readonly history: VmRecord[] = [];

  /** What etcd does: nothing unless the revision is the expected one. */
  apply({ expected, record: put }: Transaction): Entry {
    if (this.entry.revision !== expected) return this.entry;
    this.history.push(put);
    this.entry = { revision: String(Number(this.entry.revision) + 1), record: put };
    return this.entry;
  }
}

/** One of many hosts that all want the VM, through a network that is told by `choose` what to do with each request. */
function contend(choices: number[], nodes: string[]): { witness: Witness; won: VmRecord[]; lost: number } {
  const witness = new Witness();
  const late: Transaction[] = [];
  const won: VmRecord[] = [];
  let lost = 0;
  const parties = nodes.map((node) => ({ bench: new Bench(node), queue: [] as ArbiterEffect[] }));
  let next = 0;
  const choose = (limit: number) => (choices[next++ % choices.length] as number) % limit;
  parties.forEach(({ bench, queue }, index) => {
    queue.push(...bench.ask({ kind: 'alone', atLeast: 1 }, String(index).padStart(32, '0')));
  });
  for (let round = 0; round < 400; round++) {
    const calm = round > 200;
    const { bench, queue } = parties[choose(parties.length)] as (typeof parties)[number];
    const effect = queue.shift();
    if (late.length > 0 && choose(3) === 0)
      witness.apply(late.splice(choose(late.length), 1)[0] as Transaction);
    if (effect === undefined) {
      queue.push(...bench.later(2000));
    } else if (effect.type === 'read' || effect.type === 'transact') {
      const { request } = effect;
      const fate = calm ? 0 : choose(5);
      if (effect.type === 'transact' && fate >= 3) late.push(effect); // arrives another time, or once more
      const heard = fate === 0 || fate === 4;
      const entry = effect.type === 'transact' && fate !== 3 ? witness.apply(effect) : witness.entry;
      queue.push(
        ...(heard
          ? bench.answer(request, entry.revision, entry.record)
          : bench.step({ type: 'no-answer', request, reason: 'lost' })),
      );
    } else if (effect.type === 'won') {
      // INVARIANT 4: who is told that it has won is what the witness holds, for nobody else can take it from who is alone.
      expect(witness.entry.record?.primary).toBe(bench.arbiter.record?.primary);
      won.push(witness.entry.record as VmRecord);
    } else if (effect.type === 'lost') {
      lost++;
    }
  }
  return { witness, won, lost };
}

describe('any loss, delay and repetition', () => {
  test('of many that claim at once exactly one wins, and the others learn that they have lost', () => {
    fc.assert(
      fc.property(
        fc.array(fc.nat(1000), { minLength: 50, maxLength: 300 }),
        fc.integer({ min: 2, max: 4 }),
        (choices, count) => {
          const nodes = Array.from({ length: count }, (_, index) => `host${index}`);
          const { witness, won, lost } = contend(choices, nodes);
          expect(won.length).toBeLessThanOrEqual(1);
          if (won.length + lost === count) expect(won).toEqual([witness.entry.record]);
          expect(new Set(witness.history.map(({ claim }) => claim)).size).toBe(witness.history.length);
        },
      ),
      { numRuns: 2000 },
    );
  });

  test('generations only grow, and one is never held by two hosts', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(1000), { minLength: 50, maxLength: 300 }), (choices) => {
        const { witness } = contend(choices, ['host0', 'host1']);
        const generations = witness.history.map(({ generation }) => generation);
        expect(generations).toEqual([...new Set(generations)].sort((a, b) => a - b));
      }),
      { numRuns: 500 },
    );
  });
});
