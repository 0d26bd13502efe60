/** Every decoder in TypeScript of bytes that come from a peer, from QEMU, from the kernel or from a file. */
import { deepStrictEqual, ok, strictEqual } from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { encodeMessage, MessageDecoder } from '../../src/protocol/codec.ts';
import { ProtocolError } from '../../src/protocol/errors.ts';
import type { Body } from '../../src/protocol/messages.ts';
import { decodePreface, encodePreface } from '../../src/protocol/preface.ts';
import { parseJson, stringifyJson } from '../../src/qmp/json.ts';
import { LineSplitter } from '../../src/qmp/lines.ts';
import { parseGreeting, parseServerMessage } from '../../src/qmp/messages.ts';
import { parseKeyValues } from '../../src/vm/command-line.ts';
import { compare } from '../../src/vm/compatibility.ts';
import { bootId, DiskRecordError, readRecord } from '../../src/vm/disk-record.ts';
import { parseMappings } from '../../src/vm/host-process.ts';
import { parseRamImages } from '../../src/vm/load-overwrites.ts';
import { parseNetwork } from '../../src/vm/nics.ts';
import { parseRamBlocks, parseSystemMemory, RamBlocksError } from '../../src/vm/ram-blocks.ts';
import { parseSections } from '../../src/vm/vmstate-sections.ts';
import { DESCRIPTION, MAPS, MTREE, NETWORK, QMP_LINES, RAM_BLOCKS, ROMS } from './samples.ts';

export interface Target {
  name: string;
  seeds: (string | Uint8Array)[];
  /** What a decoder may throw; anything else is a finding. */
  refusals: (new (
    ...args: never[]
  ) => Error)[];
  /** Decodes, and throws when what came out can't be right. */
  feed(input: Buffer): void;
}

const HEX = '0123456789abcdef'.repeat(2);

const BODIES: [Body, epoch: number][] = [
  [
    {
      type: 'hello',
      description: DESCRIPTION,
      mode: 'strict',
      connections: 2,
      lineage: HEX,
      node: 'a',
      arbitration: 'witness',
    },
    0,
  ],
  [{ type: 'ready', bulkToken: HEX, lineages: [null, HEX], node: 'b' }, 0],
  [{ type: 'new' }, 3],
  [{ type: 'send', pages: 70_000, vmstateBytes: 20_000 }, 3],
  [{ type: 'error', code: 'stale', message: 'no', generation: 4, role: 'running' }, 0],
  [{ type: 'bye', reason: 'shutdown' }, 0],
  [{ type: 'handover' }, 3],
  [{ type: 'took-over', settledMs: 3, claimedMs: 1.5, runsMs: 9 }, 3],
];

const message = ([body, epoch]: [Body, number]) => encodeMessage({ vmId: HEX, generation: 2, epoch, body });

/** In pieces whose sizes follow from the input. */
function inPieces(input: Buffer, take: (piece: Buffer) => void): void {
  const size = 1 + ((input[input.length >> 1] ?? 0) % 61);
  for (let begin = 0; begin < input.length; begin += size) take(input.subarray(begin, begin + size));
}

/** What came until it ended, and how it ended. */
function collect<T>(take: (into: T[]) => void): { items: T[]; error: string | null } {
  const items: T[] = [];
  try {
    take(items);
    return { items, error: null };
  } catch (error) {
    return { items, error: (error as Error).message };
  }
}

function controlMessages(input: Buffer): void {
  const byPieces = collect<object>((into) => {
    const decoder = new MessageDecoder();
    inPieces(input, (piece) => into.push(...decoder.push(piece)));
  });
  const decoder = new MessageDecoder();
  const messages = decoder.push(input);
  deepStrictEqual(byPieces, { items: messages, error: null });
  for (const decoded of messages)
    deepStrictEqual(new MessageDecoder().push(encodeMessage(decoded)), [decoded]);
}

function qmpLines(input: Buffer): void {
  const take = (pieces: (each: (piece: Buffer) => void) => void) =>
    collect<string>((into) => {
      const splitter = new LineSplitter(4096);
      pieces((piece) => into.push(...splitter.push(piece)));
    });
  const whole = take((each) => each(input));
  const { items, error } = take((each) => inPieces(input, each));
  // Of lines that came together with one that can't be read, the whole chunk's are lost, too.
  deepStrictEqual(error, whole.error);
  if (error === null) deepStrictEqual(items.join('\n'), whole.items.join('\n'));
}

/** JSON.parse is the judge; the exact parser is for texts with long numbers, so there is one in front. */
function qmpJson(input: Buffer): void {
  const text = `[9007199254740993,${input.toString('utf8')}]`;
  let refusal = false;
  try {
    JSON.parse(text);
  } catch {
    refusal = true;
  }
  let value: unknown;
  try {
    value = parseJson(text);
  } catch (error) {
    ok(error instanceof SyntaxError);
    ok(refusal || error.message.includes('nested deeper'), 'refused what JSON.parse accepts');
    return;
  }
  ok(!refusal, 'accepted what JSON.parse refuses');
  // What a double can't hold has become Infinity, as with JSON.parse, and can't be written.
  if (/\d[eE]/.test(text)) return;
  const written = stringifyJson(value);
  strictEqual(stringifyJson(parseJson(written)), written);
  deepStrictEqual(JSON.parse(written), JSON.parse(text, plusZero));
}

/** JSON has a minus zero, and what JSON.stringify writes for it is zero. */
const plusZero = (_key: string, value: unknown) => (Object.is(value, -0) ? 0 : value);

const folder = mkdtempSync(path.join(tmpdir(), 'colo-fuzz-'));
process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
const disk = path.join(folder, 'disk.raw');
writeFileSync(disk, '');
const RECORD = { vm: 'web1', disk: 'vda', role: 'copy', generation: 3, lineage: HEX, bootId: bootId() };

function diskRecord(input: Buffer): void {
  writeFileSync(`${disk}.colo`, input);
  const record = readRecord(disk);
  ok(record !== null);
  // What a record says goes to the peer.
  encodeMessage({
    vmId: HEX,
    generation: record.generation,
    epoch: 0,
    body: { type: 'bye', reason: 'detach' },
  });
  const ready = encodeMessage({
    vmId: HEX,
    generation: 0,
    epoch: 0,
    body: { type: 'ready', bulkToken: HEX, lineages: [record.lineage], node: 'b' },
  });
  new MessageDecoder().push(ready);
}

function description(input: Buffer): void {
  const differences = compare(JSON.parse(input.toString('utf8')), structuredClone(DESCRIPTION));
  for (const difference of differences) {
    // They are shown on terminals.
    ok(/^[\x20-\x7e]*$/.test(difference), `not printable: ${JSON.stringify(difference)}`);
    ok(!difference.includes('function '), `not a value: ${difference}`);
  }
}

function sections(input: Buffer): void {
  for (const { name, instance, version } of parseSections(input))
    ok(name.length <= 255 && instance <= 0xffffffff && version <= 0xffffffff);
}

const VMSTATE = Buffer.concat([
  Buffer.from('QEVM\0\0\0\x03', 'latin1'),
  Buffer.from('\x04\0\0\0\x01\x05timer\0\0\0\0\0\0\0\x02DATA\x7e\0\0\0\x01', 'latin1'),
  Buffer.from('\x04\0\0\0\x02\x04apic\0\0\0\x01\0\0\0\x03\x7e\0\0\x7e\0\0\0\x02\0', 'latin1'),
]);

const text = (
  name: string,
  seeds: string[],
  parse: (text: string) => unknown,
  refusal: Target['refusals'][number] = Error,
): Target => ({
  name,
  seeds,
  refusals: [refusal],
  feed: (input) => void parse(input.toString('utf8')),
});

export const TARGETS: Target[] = [
  { name: 'control-messages', seeds: BODIES.map(message), refusals: [ProtocolError], feed: controlMessages },
  {
    name: 'preface',
    seeds: [
      encodePreface({ link: 'control' }),
      encodePreface({ link: 'doctor' }),
      encodePreface({ link: 'bulk', bulkToken: HEX, generation: 3, index: 1, connections: 2 }),
    ],
    refusals: [ProtocolError],
    feed: (input) => deepStrictEqual(Buffer.from(encodePreface(decodePreface(input))), input),
  },
  { name: 'qmp-lines', seeds: [QMP_LINES], refusals: [], feed: qmpLines },
  { name: 'qmp-json', seeds: QMP_LINES.split('\r\n'), refusals: [], feed: qmpJson },
  {
    name: 'qmp-messages',
    seeds: QMP_LINES.split('\r\n'),
    refusals: [SyntaxError, TypeError],
    feed: (input) => {
      const line = input.toString('utf8');
      parseGreeting(line);
      parseServerMessage(line);
    },
  },
  { name: 'disk-record', seeds: [JSON.stringify(RECORD)], refusals: [DiskRecordError], feed: diskRecord },
  { name: 'vmstate-sections', seeds: [VMSTATE], refusals: [Error], feed: sections },
  { name: 'description', seeds: [JSON.stringify(DESCRIPTION)], refusals: [SyntaxError], feed: description },
  text('ram-blocks', RAM_BLOCKS, parseRamBlocks, RamBlocksError),
  text('memory-tree', [MTREE], parseSystemMemory, RamBlocksError),
  text('rom-images', [ROMS], parseRamImages),
  text('network', [NETWORK], parseNetwork),
  text('mappings', [MAPS], parseMappings),
  text(
    'key-values',
    ['tap,id=n0,vhost=off,script=a,,b', '{"type":"tap","id":"n0","vhost":false}'],
    (value) => parseKeyValues(value, 'type'),
    SyntaxError,
  ),
];
