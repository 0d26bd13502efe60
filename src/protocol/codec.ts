/** Control messages as bytes (docs/protocol.md, "Control messages"). */
import { ProtocolError } from './errors.ts';
import type { Body, Message } from './messages.ts';
import { PROTOCOL_VERSION } from './messages.ts';
import { parseBody } from './payload.ts';

export const HEADER_BYTES = 44;
const MAGIC = 'COLO';
const SEND_BYTES = 12;

type BodyType = Body['type'];

interface Kind {
  type: BodyType;
  code: number;
  /** Whether the message belongs to an epoch; one that doesn't carries 0. */
  epoch: boolean;
  payload: { exactBytes: number } | { jsonBytesMax: number };
}

const KINDS: readonly Kind[] = [
  { type: 'hello', code: 1, epoch: false, payload: { jsonBytesMax: 1 << 20 } },
  { type: 'ready', code: 2, epoch: false, payload: { jsonBytesMax: 4096 } },
  { type: 'new', code: 3, epoch: true, payload: { exactBytes: 0 } },
  { type: 'suspended', code: 4, epoch: true, payload: { exactBytes: 0 } },
  { type: 'send', code: 5, epoch: true, payload: { exactBytes: SEND_BYTES } },
  { type: 'received', code: 6, epoch: true, payload: { exactBytes: 0 } },
  { type: 'loaded', code: 7, epoch: true, payload: { exactBytes: 0 } },
  { type: 'error', code: 8, epoch: false, payload: { jsonBytesMax: 4096 } },
  { type: 'bye', code: 9, epoch: false, payload: { jsonBytesMax: 4096 } },
  { type: 'handover', code: 10, epoch: true, payload: { exactBytes: 0 } },
  { type: 'took-over', code: 11, epoch: true, payload: { jsonBytesMax: 4096 } },
];

/**
 * Throws ProtocolError for a message that no decoder would accept (an epoch where there must be none, a description that is too long): such
 * a message is refused where it is made, not at the peer.
 */
export function encodeMessage(message: Message): Uint8Array {
  const kind = KINDS.find((candidate) => candidate.type === message.body.type);
  if (kind === undefined) throw new ProtocolError('bad-type', `no such message: ${message.body.type}`);
  if (!/^[0-9a-f]{32}$/.test(message.vmId))
    throw new ProtocolError('bad-payload', 'a VM id is 32 hex digits');
  const payload = encodePayload(message.body);
  checkNumber('bad-generation', `${kind.type}: generation`, message.generation);
  checkNumber('bad-epoch', `${kind.type}: epoch`, message.epoch);
  checkEpoch(kind, message.epoch);
  checkLength(kind, payload.length);
  const bytes = Buffer.alloc(HEADER_BYTES + payload.length);
  bytes.write(MAGIC, 0, 'latin1');
  bytes.writeUInt16BE(PROTOCOL_VERSION, 4);
  bytes.writeUInt16BE(kind.code, 6);
  bytes.write(message.vmId, 8, 'hex');
  bytes.writeBigUInt64BE(BigInt(message.generation), 24);
  bytes.writeBigUInt64BE(BigInt(message.epoch), 32);
  bytes.writeUInt32BE(payload.length, 40);
  bytes.set(payload, HEADER_BYTES);
  return bytes;
}

function encodePayload(body: Body): Uint8Array {
  if (body.type === 'send') {
    const payload = Buffer.alloc(SEND_BYTES);
    checkNumber('bad-payload', 'send: pages', body.pages);
    payload.writeBigUInt64BE(BigInt(body.pages), 0);
    payload.writeUInt32BE(body.vmstateBytes, 8);
    return payload;
  }
  const { type: _, ...fields } = body;
  return Object.keys(fields).length === 0 ? new Uint8Array(0) : Buffer.from(JSON.stringify(fields), 'utf8');
}

interface Header {
  kind: Kind;
  vmId: string;
  generation: number;
  epoch: number;
  payloadBytes: number;
}

/**
 * Takes a connection's bytes in pieces of any size and gives whole messages. It never holds more than one message: each header is checked, its
 * length included, before a byte of payload is kept. After a throw the stream's place is lost; every later push throws the same error.
 */
export class MessageDecoder {
  private readonly headerBytes = Buffer.alloc(HEADER_BYTES);
  private header: Header | null = null;
  private payload = Buffer.alloc(0);
  /** Bytes already in `headerBytes`, or in `payload` once there is a header. */
  private filled = 0;
  private broken: ProtocolError | null = null;

  /** Throws ProtocolError; messages that the same chunk held before the malformed one are lost with the session. */
  push(chunk: Uint8Array): Message[] {
    if (this.broken !== null) throw this.broken;
    try {
      return this.decode(chunk);
    } catch (error) {
      if (error instanceof ProtocolError) this.broken = error;
      throw error;
    }
  }

  private decode(chunk: Uint8Array): Message[] {
    const messages: Message[] = [];
    let at = 0;
    for (;;) {
      if (this.header === null) {
        at += this.fill(this.headerBytes, chunk, at);
        if (this.filled < HEADER_BYTES) return messages;
        this.header = decodeHeader(this.headerBytes);
        this.payload = Buffer.alloc(this.header.payloadBytes);
        this.filled = 0;
      }
      at += this.fill(this.payload, chunk, at);
      if (this.filled < this.payload.length) return messages;
      messages.push(decodeMessage(this.header, this.payload));
      this.header = null;
      this.filled = 0;
    }
  }

  private fill(target: Buffer, chunk: Uint8Array, at: number): number {
    const piece = chunk.subarray(at, at + target.length - this.filled);
    target.set(piece, this.filled);
    this.filled += piece.length;
    return piece.length;
  }
}

function decodeHeader(bytes: Buffer): Header {
  const magic = bytes.toString('latin1', 0, 4);
  if (magic !== MAGIC) throw new ProtocolError('bad-magic', `unknown magic ${JSON.stringify(magic)}`);
  const version = bytes.readUInt16BE(4);
  if (version !== PROTOCOL_VERSION) {
    throw new ProtocolError(
      'bad-version',
      `the peer speaks version ${version}, this agent ${PROTOCOL_VERSION}`,
    );
  }
  const code = bytes.readUInt16BE(6);
  const kind = KINDS.find((candidate) => candidate.code === code);
  if (kind === undefined) throw new ProtocolError('bad-type', `unknown message type ${code}`);
  const generation = Number(bytes.readBigUInt64BE(24));
  const epoch = Number(bytes.readBigUInt64BE(32));
  const payloadBytes = bytes.readUInt32BE(40);
  checkNumber('bad-generation', `${kind.type}: generation`, generation);
  checkNumber('bad-epoch', `${kind.type}: epoch`, epoch);
  checkEpoch(kind, epoch);
  checkLength(kind, payloadBytes);
  return { kind, vmId: bytes.toString('hex', 8, 24), generation, epoch, payloadBytes };
}

function decodeMessage(header: Header, payload: Buffer): Message {
  const { kind, vmId, generation, epoch } = header;
  return { vmId, generation, epoch, body: decodeBody(kind.type, payload) };
}

function decodeBody(type: BodyType, payload: Buffer): Body {
  switch (type) {
    case 'hello':
    case 'ready':
    case 'error':
    case 'bye':
    case 'took-over':
      return parseBody(type, payload);
    case 'send': {
      const pages = Number(payload.readBigUInt64BE(0));
      checkNumber('bad-payload', 'send: pages', pages);
      return { type, pages, vmstateBytes: payload.readUInt32BE(8) };
    }
    default:
      return { type };
  }
}

/** 64-bit fields must be exact as JavaScript numbers. */
function checkNumber(
  code: 'bad-generation' | 'bad-epoch' | 'bad-payload',
  field: string,
  value: number,
): void {
  if (!Number.isSafeInteger(value) || value < 0)
    throw new ProtocolError(code, `${field} ${value} is not below 2^53`);
}

function checkEpoch(kind: Kind, epoch: number): void {
  if (kind.epoch === epoch > 0) return;
  const rule = kind.epoch ? 'belongs to an epoch from 1 on' : 'belongs to no epoch';
  throw new ProtocolError('bad-epoch', `${kind.type} ${rule}, yet carries ${epoch}`);
}

function checkLength(kind: Kind, bytes: number): void {
  if ('exactBytes' in kind.payload) {
    if (bytes === kind.payload.exactBytes) return;
    throw new ProtocolError(
      'bad-length',
      `${kind.type}: ${bytes} bytes of payload instead of ${kind.payload.exactBytes}`,
    );
  }
  if (bytes <= kind.payload.jsonBytesMax) return;
  throw new ProtocolError(
    'bad-length',
    `${kind.type}: ${bytes} bytes of payload, at most ${kind.payload.jsonBytesMax} are allowed`,
  );
}
