/** The first 64 bytes of every connection (docs/protocol.md, "Preface"). */
import { ProtocolError } from './errors.ts';

export const PREFACE_BYTES = 64;
export const CONNECTIONS_MAX = 16;

export type Preface =
  | { link: 'control' }
  /** `bulkToken`: 32 hex digits, from READY. `index` counts the session's bulk connections from 0. */
  | { link: 'bulk'; bulkToken: string; generation: number; index: number; connections: number }
  | { link: 'heartbeat'; bulkToken: string; generation: number }
  /** `colo-agent doctor`, which has questions of its own (src/doctor/reception.ts). */
  | { link: 'doctor' };

const LINKS = ['control', 'bulk', 'heartbeat', 'doctor'] as const;
const MAGIC = { control: 'COLOCTL1', bulk: 'COLOBLK1', heartbeat: 'COLOHBT1', doctor: 'COLODOC1' } as const;
/** From here on each kind's bytes are reserved. */
const RESERVED_AT = { control: 8, bulk: 36, heartbeat: 32, doctor: 8 } as const;

/** Throws ProtocolError bad-preface for a preface that no peer would accept. */
export function encodePreface(preface: Preface): Uint8Array {
  const bytes = Buffer.alloc(PREFACE_BYTES);
  bytes.write(MAGIC[preface.link], 0, 'latin1');
  if (preface.link === 'control' || preface.link === 'doctor') return bytes;
  if (!/^[0-9a-f]{32}$/.test(preface.bulkToken)) refuse('the bulk token is not 32 hex digits');
  checkGeneration(preface.generation);
  bytes.write(preface.bulkToken, 8, 'hex');
  bytes.writeBigUInt64BE(BigInt(preface.generation), 24);
  if (preface.link === 'bulk') {
    checkConnection(preface.index, preface.connections);
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
  const link =
    LINKS.find((each) => MAGIC[each] === magic) ?? refuse(`unknown magic ${JSON.stringify(magic)}`);
  if (bytes.subarray(RESERVED_AT[link]).some((byte) => byte !== 0)) refuse('a reserved byte is not zero');
  if (link === 'control' || link === 'doctor') return { link };
  const bulkToken = bytes.toString('hex', 8, 24);
  const generation = Number(bytes.readBigUInt64BE(24));
  checkGeneration(generation);
  if (link === 'heartbeat') return { link, bulkToken, generation };
  const index = bytes.readUInt16BE(32);
  const connections = bytes.readUInt16BE(34);
  checkConnection(index, connections);
  return { link, bulkToken, generation, index, connections };
}

function checkGeneration(generation: number): void {
  if (!Number.isSafeInteger(generation) || generation < 0)
    refuse(`generation ${generation} is not below 2^53`);
}

function checkConnection(index: number, connections: number): void {
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
