import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { encodeMessage, HEADER_BYTES, MessageDecoder } from '../../src/protocol/codec.ts';
import { ProtocolError } from '../../src/protocol/errors.ts';
import type { Body, Message } from '../../src/protocol/messages.ts';
import { DEPTH_MAX, DISKS_MAX } from '../../src/protocol/payload.ts';
import { decodePreface, encodePreface } from '../../src/protocol/preface.ts';
import { vmIdOf } from '../../src/protocol/vm-id.ts';

const VM_ID = '00112233445566778899aabbccddeeff';

const hex = (digits: number) => fc.stringMatching(new RegExp(`^[0-9a-f]{${digits}}$`));
const count = fc.maxSafeNat();
const json = fc.dictionary(fc.string(), fc.jsonValue({ maxDepth: 4 })) as fc.Arbitrary<unknown>;
/** JSON has no negative zero. */
const canonical = (value: unknown): unknown => JSON.parse(JSON.stringify(value));

const nodeName = fc.stringMatching(/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/);

const epochless: fc.Arbitrary<Body> = fc.oneof(
  fc.record({
    type: fc.constant('hello' as const),
    description: json.map(canonical),
    mode: fc.constantFrom('pipelined' as const, 'strict' as const),
    connections: fc.integer({ min: 1, max: 16 }),
    lineage: hex(32),
    node: nodeName,
    arbitration: fc.constantFrom('witness' as const, 'none' as const),
  }),
  fc.record({
    type: fc.constant('ready' as const),
    bulkToken: hex(32),
    lineages: fc.array(fc.option(hex(32)), { maxLength: DISKS_MAX }),
    node: nodeName,
  }),
  fc.record(
    {
      type: fc.constant('error' as const),
      code: fc.stringMatching(/^[a-z][a-z0-9-]{0,20}$/),
      message: fc.string({ maxLength: 500 }),
      generation: count,
      role: fc.constantFrom('standby' as const, 'running' as const),
    },
    { requiredKeys: ['type', 'code', 'message'] },
  ) as fc.Arbitrary<Body>,
  fc.record({
    type: fc.constant('bye' as const),
    reason: fc.constantFrom('shutdown' as const, 'detach' as const, 'qemu-lost' as const),
  }),
);
/** JSON knows no -0. */
const duration = fc.double({ min: 0, max: 1e9, noNaN: true }).map(Math.abs);
const inEpoch: fc.Arbitrary<Body> = fc.oneof(
  fc.constantFrom('new', 'suspended', 'received', 'loaded', 'handover').map((type) => ({ type }) as Body),
  fc.record({
    type: fc.constant('took-over' as const),
    settledMs: duration,
    claimedMs: fc.option(duration),
    runsMs: duration,
  }),
  fc.record({ type: fc.constant('send' as const), pages: count, vmstateBytes: fc.nat(0xffffffff) }),
);
const envelope = { vmId: hex(32), generation: count };
const anyMessage: fc.Arbitrary<Message> = fc.oneof(
  fc.record({ ...envelope, epoch: fc.constant(0), body: epochless }),
  fc.record({ ...envelope, epoch: count.filter((epoch) => epoch > 0), body: inEpoch }),
);

/** Cuts `bytes` at the given places (modulo its length). */
function pieces(bytes: Uint8Array, cuts: number[]): Uint8Array[] {
  const at = [0, ...cuts.map((cut) => cut % (bytes.length + 1)).sort((a, b) => a - b), bytes.length];
  return at.slice(1).map((end, index) => bytes.subarray(at[index], end));
}

function frame(message: Partial<Message> & { body: Body }): Buffer {
  return Buffer.from(encodeMessage({ vmId: VM_ID, generation: 7, epoch: 0, ...message }));
}

/** A frame whose payload is replaced, its length with it. */
function withPayload(body: Body, payload: string | Uint8Array, epoch = 0): Buffer {
  const bytes = Buffer.from(payload);
  const header = frame({ body, epoch }).subarray(0, HEADER_BYTES);
  header.writeUInt32BE(bytes.length, 40);
  return Buffer.concat([header, bytes]);
}

const HELLO: Body = {
  type: 'hello',
  description: {},
  mode: 'strict',
  connections: 1,
  lineage: VM_ID,
  node: 'north',
  arbitration: 'witness',
};
const READY: Body = { type: 'ready', bulkToken: VM_ID, lineages: [], node: 'south' };
const TOOK_OVER: Body = { type: 'took-over', settledMs: 3, claimedMs: null, runsMs: 4 };
const ERROR: Body = { type: 'error', code: 'protocol', message: '' };

describe('control messages', () => {
  test('the bytes are those of docs/protocol.md', () => {
    const bytes = frame({
      generation: 258,
      epoch: 3,
      body: { type: 'send', pages: 2 ** 33 + 1, vmstateBytes: 5 },
    });
    expect(bytes.toString('hex')).toBe(
      [
        '434f4c4f', // COLO
        '0001',
        '0005',
        VM_ID,
        '0000000000000102',
        '0000000000000003',
        '0000000c',
        '0000000200000001',
        '00000005',
      ].join(''),
    );
  });

  test("a peer's text can't command a terminal", () => {
    const body: Body = { type: 'error', code: 'protocol', message: 'gone\n\x1b[2J\x9b1m\r\x7f für immer' };
    expect(new MessageDecoder().push(frame({ generation: 1, epoch: 0, body }))).toMatchObject([
      { body: { message: 'gone\n?[2J?1m?? für immer' } },
    ]);
  });

  test('what was encoded is decoded, however the stream is cut', () => {
    fc.assert(
      fc.property(
        fc.array(anyMessage, { maxLength: 5 }),
        fc.array(fc.nat(), { maxLength: 8 }),
        (messages, cuts) => {
          const decoder = new MessageDecoder();
          const stream = Buffer.concat(messages.map(encodeMessage));
          expect(pieces(stream, cuts).flatMap((piece) => decoder.push(piece))).toEqual(messages);
        },
      ),
    );
  });

  test('a message that is cut at any byte waits for the rest, and comes byte by byte', () => {
    fc.assert(
      fc.property(anyMessage, (message) => {
        const decoder = new MessageDecoder();
        const bytes = encodeMessage(message);
        for (let at = 0; at < bytes.length - 1; at++)
          expect(decoder.push(bytes.subarray(at, at + 1))).toEqual([]);
        expect(decoder.push(bytes.subarray(-1))).toEqual([message]);
      }),
      { numRuns: 50 },
    );
  });

  test('mutated bytes give messages that encode again, or a ProtocolError; nothing else', () => {
    fc.assert(
      fc.property(
        anyMessage,
        fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 4 }),
        (message, changes) => {
          const bytes = Buffer.from(encodeMessage(message));
          for (const [at, value] of changes) bytes[at % bytes.length] = value;
          try {
            for (const decoded of new MessageDecoder().push(bytes)) encodeMessage(decoded);
          } catch (error) {
            expect(error).toBeInstanceOf(ProtocolError);
          }
        },
      ),
      { numRuns: 3000 },
    );
  });

  test('random bytes are refused as soon as the magic is wrong', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: HEADER_BYTES, maxLength: 500 }), (bytes) => {
        fc.pre(Buffer.from(bytes.subarray(0, 4)).toString('latin1') !== 'COLO');
        expect(() => new MessageDecoder().push(bytes)).toThrow(ProtocolError);
      }),
    );
  });

  const header = (change: (bytes: Buffer) => void, body: Body = READY, epoch = 0): Buffer => {
    const bytes = frame({ epoch, body });
    change(bytes);
    return bytes;
  };

  test.each<[string, Buffer, string, RegExp]>([
    ['another magic', header((b) => b.write('HTTP', 0)), 'bad-magic', /"HTTP"/],
    ['a newer version', header((b) => b.writeUInt16BE(2, 4)), 'bad-version', /version 2/],
    ['type 0', header((b) => b.writeUInt16BE(0, 6)), 'bad-type', /type 0/],
    ['type 12', header((b) => b.writeUInt16BE(12, 6)), 'bad-type', /type 12/],
    [
      'generation 2^53',
      header((b) => b.writeBigUInt64BE(2n ** 53n, 24)),
      'bad-generation',
      /ready: generation/,
    ],
    ['generation 2^64 - 1', header((b) => b.writeBigUInt64BE(2n ** 64n - 1n, 24)), 'bad-generation', /2\^53/],
    [
      'epoch 2^53 + 1',
      header((b) => b.writeBigUInt64BE(2n ** 53n + 1n, 32), { type: 'new' }, 1),
      'bad-epoch',
      /new: epoch/,
    ],
    [
      'an epoch where there is none',
      header((b) => b.writeBigUInt64BE(1n, 32)),
      'bad-epoch',
      /belongs to no epoch/,
    ],
    [
      'epoch 0 where there must be one',
      header((b) => b.fill(0, 32, 40), { type: 'loaded' }, 1),
      'bad-epoch',
      /from 1 on/,
    ],
    [
      'a NEW with payload',
      header((b) => b.writeUInt32BE(1, 40), { type: 'new' }, 1),
      'bad-length',
      /1 bytes of payload instead of 0/,
    ],
    [
      'a short SEND',
      header((b) => b.writeUInt32BE(11, 40), { type: 'send', pages: 0, vmstateBytes: 0 }, 1),
      'bad-length',
      /11/,
    ],
    [
      'an oversized HELLO',
      header((b) => b.writeUInt32BE((1 << 20) + 1, 40), HELLO),
      'bad-length',
      /at most 1048576/,
    ],
    ['an oversized ERROR', header((b) => b.writeUInt32BE(4097, 40), ERROR), 'bad-length', /at most 4096/],
    ['a length of 4 GiB', header((b) => b.writeUInt32BE(0xffffffff, 40), ERROR), 'bad-length', /4294967295/],
    [
      'a SEND of too many pages',
      header((b) => b.writeBigUInt64BE(2n ** 60n, 44), { type: 'send', pages: 0, vmstateBytes: 0 }, 1),
      'bad-payload',
      /pages/,
    ],
    ['no JSON', withPayload(HELLO, '{'), 'bad-payload', /hello: the payload is not JSON/],
    ['an empty payload', withPayload(ERROR, ''), 'bad-payload', /not JSON/],
    [
      'bytes that are not UTF-8',
      withPayload(ERROR, Buffer.from([0x22, 0xff, 0x22])),
      'bad-payload',
      /not JSON in UTF-8/,
    ],
    ['an array', withPayload(HELLO, '[]'), 'bad-payload', /not a JSON object/],
    ['null', withPayload(HELLO, 'null'), 'bad-payload', /not a JSON object/],
    [
      'no description',
      withPayload(HELLO, '{"mode":"strict","connections":1}'),
      'bad-payload',
      /description must be an object/,
    ],
    [
      'an unknown mode',
      withPayload(HELLO, '{"description":{},"mode":"fast","connections":1}'),
      'bad-payload',
      /mode must be one of/,
    ],
    [
      '17 connections',
      withPayload(HELLO, '{"description":{},"mode":"strict","connections":17}'),
      'bad-payload',
      /1 to 16/,
    ],
    [
      '1.5 connections',
      withPayload(HELLO, '{"description":{},"mode":"strict","connections":1.5}'),
      'bad-payload',
      /1 to 16/,
    ],
    [
      'an unknown field',
      withPayload(HELLO, '{"description":{},"mode":"strict","connections":1,"x":1}'),
      'bad-payload',
      /unknown field "x"/,
    ],
    [
      'a deep description',
      withPayload(
        HELLO,
        `{"description":{"a":${'['.repeat(DEPTH_MAX)}${']'.repeat(DEPTH_MAX)}},"mode":"strict","connections":1}`,
      ),
      'bad-payload',
      /deeper/,
    ],
    [
      'a short token',
      withPayload(READY, '{"bulkToken":"00","lineages":[]}'),
      'bad-payload',
      /bulkToken must be 32 hex/,
    ],
    ['no lineages', withPayload(READY, `{"bulkToken":"${VM_ID}"}`), 'bad-payload', /lineages must be/],
    [
      'a short lineage',
      withPayload(READY, `{"bulkToken":"${VM_ID}","lineages":[null,"00"]}`),
      'bad-payload',
      /lineages must be/,
    ],
    [
      'too many lineages',
      withPayload(
        READY,
        `{"bulkToken":"${VM_ID}","lineages":${JSON.stringify(new Array(DISKS_MAX + 1).fill(null))}}`,
      ),
      'bad-payload',
      /at most 64/,
    ],
    [
      'no node',
      withPayload(READY, `{"bulkToken":"${VM_ID}","lineages":[]}`),
      'bad-payload',
      /ready: node must be a name/,
    ],
    [
      'a node with a path in its name',
      withPayload(READY, `{"bulkToken":"${VM_ID}","lineages":[],"node":"../a"}`),
      'bad-payload',
      /ready: node must be a name/,
    ],
    [
      'no arbitration',
      withPayload(
        HELLO,
        `{"description":{},"mode":"strict","connections":1,"lineage":"${VM_ID}","node":"a"}`,
      ),
      'bad-payload',
      /arbitration must be one of witness, none/,
    ],
    [
      'no lineage',
      withPayload(HELLO, '{"description":{},"mode":"strict","connections":1}'),
      'bad-payload',
      /lineage must be/,
    ],
    [
      'an unknown reason',
      withPayload({ type: 'bye', reason: 'detach' }, '{"reason":"bored"}'),
      'bad-payload',
      /reason must be one of/,
    ],
    [
      'a time that is none',
      withPayload(TOOK_OVER, '{"settledMs":1,"claimedMs":null,"runsMs":-1}', 2),
      'bad-payload',
      /runsMs must be a number of milliseconds/,
    ],
    ['a code with spaces', withPayload(ERROR, '{"code":"a b","message":""}'), 'bad-payload', /code must be/],
    ['no message', withPayload(ERROR, '{"code":"a"}'), 'bad-payload', /message must be/],
    [
      'an unknown role',
      withPayload(ERROR, '{"code":"a","message":"","role":"boss"}'),
      'bad-payload',
      /role must be/,
    ],
    [
      'a negative generation',
      withPayload(ERROR, '{"code":"a","message":"","generation":-1}'),
      'bad-payload',
      /generation must be/,
    ],
  ])('%s is refused', (_, bytes, code, text) => {
    const decoder = new MessageDecoder();
    const refused = (chunk: Uint8Array) => {
      try {
        decoder.push(chunk);
      } catch (error) {
        return error as ProtocolError;
      }
      return null;
    };
    const error = refused(bytes);
    expect(error).toBeInstanceOf(ProtocolError);
    expect(error?.code).toBe(code);
    expect(error?.message).toMatch(text);
    // The place in the stream is lost for good.
    expect(refused(frame({ body: READY }))).toBe(error);
  });

  test('a length is refused before its payload is waited for', () => {
    const bytes = header((b) => b.writeUInt32BE(1 << 30, 40), HELLO).subarray(0, HEADER_BYTES);
    expect(() => new MessageDecoder().push(bytes)).toThrow(/at most 1048576/);
  });

  test.each<[string, Message]>([
    ['an epoch where there is none', { vmId: VM_ID, generation: 1, epoch: 1, body: READY }],
    ['no epoch', { vmId: VM_ID, generation: 1, epoch: 0, body: { type: 'new' } }],
    ['a VM id that is none', { vmId: 'x', generation: 1, epoch: 0, body: READY }],
    ['generation 2^53', { vmId: VM_ID, generation: 2 ** 53, epoch: 0, body: READY }],
    [
      'a description that is too long',
      {
        vmId: VM_ID,
        generation: 1,
        epoch: 0,
        body: { ...HELLO, description: { a: 'x'.repeat(1 << 20) } } as Body,
      },
    ],
  ])('%s is not encoded', (_, message) => {
    expect(() => encodeMessage(message)).toThrow(ProtocolError);
  });
});

describe('prefaces', () => {
  const BARE = [{ link: 'control' as const }, { link: 'doctor' as const }];

  test('the bytes are those of docs/protocol.md', () => {
    expect(Buffer.from(encodePreface({ link: 'control' })).toString('latin1')).toBe(
      `COLOCTL1${'\0'.repeat(56)}`,
    );
    const bulk = encodePreface({ link: 'bulk', bulkToken: VM_ID, generation: 1, index: 2, connections: 3 });
    const tail = `${'0'.repeat(15)}100020003${'0'.repeat(56)}`;
    expect(Buffer.from(bulk).toString('hex')).toBe(
      `${Buffer.from('COLOBLK1').toString('hex')}${VM_ID}${tail}`,
    );
  });

  test('what was encoded is decoded', () => {
    const bulk = fc
      .record({
        link: fc.constant('bulk' as const),
        bulkToken: hex(32),
        generation: count,
        connections: fc.integer({ min: 1, max: 16 }),
      })
      .chain((preface) => fc.nat(preface.connections - 1).map((index) => ({ ...preface, index })));
    const heartbeat = fc.record({
      link: fc.constant('heartbeat' as const),
      bulkToken: hex(32),
      generation: count,
    });
    fc.assert(
      fc.property(fc.oneof(bulk, heartbeat, fc.constantFrom(...BARE)), (preface) => {
        expect(decodePreface(encodePreface(preface))).toEqual(preface);
      }),
    );
  });

  test.each<[string, (bytes: Buffer) => void, RegExp]>([
    ['another magic', (b) => b.write('COLOCTL2', 0), /unknown magic "COLOCTL2"/],
    ['a reserved byte', (b) => b.writeUInt8(1, 63), /reserved/],
    ['no connections', (b) => b.writeUInt16BE(0, 34), /0 bulk connections/],
    ['an index too high', (b) => b.writeUInt16BE(3, 32), /connection 3 of 3/],
    ['generation 2^53', (b) => b.writeBigUInt64BE(2n ** 53n, 24), /generation/],
  ])('%s is refused', (_, change, text) => {
    const good = Buffer.from(
      encodePreface({ link: 'bulk', bulkToken: VM_ID, generation: 1, index: 2, connections: 3 }),
    );
    change(good);
    expect(() => decodePreface(good)).toThrow(text);
  });

  test('one byte too few is refused', () => {
    expect(() => decodePreface(encodePreface({ link: 'control' }).subarray(1))).toThrow(/64 bytes, not 63/);
  });

  test('a heartbeat preface has no connections', () => {
    const bytes = Buffer.from(encodePreface({ link: 'heartbeat', bulkToken: VM_ID, generation: 1 }));
    expect(bytes.toString('hex')).toBe(
      `${Buffer.from('COLOHBT1').toString('hex')}${VM_ID}${'0'.repeat(15)}1${'0'.repeat(64)}`,
    );
    bytes.writeUInt16BE(1, 34);
    expect(() => decodePreface(bytes)).toThrow(/reserved/);
  });

  test.each(BARE)('a $link preface carries nothing', (preface) => {
    const bytes = encodePreface(preface);
    bytes[20] = 1;
    expect(() => decodePreface(bytes)).toThrow(/reserved/);
  });
});

test('the VM id is the first half of the SHA-256 of the name', () => {
  expect(vmIdOf('')).toBe('e3b0c44298fc1c149afbf4c8996fb924');
  expect(vmIdOf('Bär')).toBe(vmIdOf('B\u00e4r'));
});
