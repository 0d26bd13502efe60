/** The first 64 bytes of every connection (docs/protocol.md, "Preface"). */
import { ProtocolError } from './errors.ts';

export const PREFACE_BYTES = 64;
export const CONNECTIONS_MAX = 16;

export type Preface =
  | { link: 'control' }
  /** `bulkToken`: 32 hex digits, from READY. `index` counts the session's bulk connections from 0. */
  | { link: 'bulk'; bulkToken: string; generation: number; index: number; connections: number };

const MAGIC = { control: 'COLOCTL1', bulk: 'COLOBLK1' } as const;
const RESERVED_AT = 36;

/** Throws ProtocolError bad-preface for a preface that no peer would accept. */
export function encodePreface(preface: Preface): Uint8Array {
  const bytes = Buffer.alloc(PREFACE_BYTES);
  bytes.write(MAGIC[preface.link], 0, 'latin1');
  if (preface.link === 'bulk') {
    if (!/^[0-9a-f]{32}$/.test(preface.bulkToken)) refuse('the bulk token is not 32 hex digits');
    checkBulk(preface.generation, preface.index, preface.connections);
    bytes.write(preface.bulkToken, 8, 'hex');
    bytes.writeBigUInt64BE(BigInt(preface.generation), 24);
    bytes.writeUInt16BE(preface.index, 32);
    bytes.writeUInt16BE(preface.connections, 34);
  }
  return bytes;
}

/** Throws ProtocolError bad-preface with a text that says which field was wrong. */
export function decodePreface(input: Uint8Array): Preface {
  if (input.length !== PREFACE_BYTES) refuse(`a preface has ${PREFACE_BYTES} bytes, not ${input.length}`);
  const bytes = Buffer.from(input.buffer, input.byteOffset, input.byteLength);
  const magic = bytes.toString('latin1', 0, 8);
  if (magic !== MAGIC.control && magic !== MAGIC.bulk) refuse(`unknown magic ${JSON.stringify(magic)}`);
  const link = magic === MAGIC.control ? 'control' : 'bulk';
  const zeroFrom = link === 'control' ? 8 : RESERVED_AT;
  if (bytes.subarray(zeroFrom).some((byte) => byte !== 0)) refuse('a reserved byte is not zero');
  if (link === 'control') return { link };
  const generation = Number(bytes.readBigUInt64BE(24));
  const index = bytes.readUInt16BE(32);
  const connections = bytes.readUInt16BE(34);
  checkBulk(generation, index, connections);
  return { link, bulkToken: bytes.toString('hex', 8, 24), generation, index, connections };
}

function checkBulk(generation: number, index: number, connections: number): void {
  if (!Number.isSafeInteger(generation) || generation < 0)
    refuse(`generation ${generation} is not below 2^53`);
  if (!Number.isInteger(connections) || connections < 1 || connections > CONNECTIONS_MAX) {
    refuse(`${connections} bulk connections; 1 to ${CONNECTIONS_MAX} are allowed`);
  }
  if (!Number.isInteger(index) || index < 0 || index >= connections) {
    refuse(`bulk connection ${index} of ${connections}`);
  }
}

function refuse(text: string): never {
  throw new ProtocolError('bad-preface', `preface: ${text}`);
}
