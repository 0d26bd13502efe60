/** The JSON payloads of control messages: what each field may be. Nothing from a peer is believed before it has passed here. */
import { isNodeName } from './arbiter.ts';
import { ProtocolError } from './errors.ts';
import type { Body, Lineage } from './messages.ts';
import { CONNECTIONS_MAX } from './preface.ts';

/** A description nests a few levels; code that walks it recursively must not be led into a stack overflow. */
export const DEPTH_MAX = 64;

/** READY has to fit into 4 KiB. */
export const DISKS_MAX = 64;

const HEX_32 = /^[0-9a-f]{32}$/;

type Fields = Record<string, unknown>;

/** Parses and validates the payload of a message whose payload is JSON. Throws ProtocolError bad-payload that names the field. */
export function parseBody(
  type: 'hello' | 'ready' | 'error' | 'bye' | 'took-over',
  payload: Uint8Array,
): Body {
  const fields = parseObject(type, payload);
  switch (type) {
    case 'hello':
      return parseHello(fields);
    case 'ready': {
      onlyFields(type, fields, ['bulkToken', 'lineages', 'node']);
      const bulkToken = textField(type, fields, 'bulkToken', HEX_32, '32 hex digits');
      return { type, bulkToken, lineages: lineagesField(fields), node: nodeField(type, fields) };
    }
    case 'error':
      return parseError(fields);
    case 'bye': {
      onlyFields(type, fields, ['reason']);
      const reason = choiceField(type, fields, 'reason', ['shutdown', 'detach', 'qemu-lost'] as const);
      return { type, reason };
    }
    case 'took-over':
      return parseTookOver(fields);
  }
}

function parseHello(fields: Fields): Body {
  onlyFields('hello', fields, ['description', 'mode', 'connections', 'lineage', 'node', 'arbitration']);
  const { description, connections } = fields;
  if (!isObject(description)) refuse('hello', 'description', 'an object');
  const mode = choiceField('hello', fields, 'mode', ['pipelined', 'strict'] as const);
  if (!isCount(connections) || connections < 1 || connections > CONNECTIONS_MAX) {
    refuse('hello', 'connections', `a number from 1 to ${CONNECTIONS_MAX}`);
  }
  const lineage = textField('hello', fields, 'lineage', HEX_32, '32 hex digits');
  const arbitration = choiceField('hello', fields, 'arbitration', ['witness', 'none'] as const);
  return {
    type: 'hello',
    description,
    mode,
    connections,
    lineage,
    node: nodeField('hello', fields),
    arbitration,
  };
}

function nodeField(type: string, { node }: Fields): string {
  if (!isNodeName(node)) refuse(type, 'node', 'a name of 1-63 letters, digits, dots, dashes or underscores');
  return node;
}

function lineagesField({ lineages }: Fields): (Lineage | null)[] {
  const valid = (value: unknown): value is Lineage | null =>
    value === null || (typeof value === 'string' && HEX_32.test(value));
  if (!Array.isArray(lineages) || lineages.length > DISKS_MAX || !lineages.every(valid)) {
    refuse('ready', 'lineages', `a list of at most ${DISKS_MAX} items, each null or 32 hex digits`);
  }
  return lineages;
}

function parseError(fields: Fields): Body {
  onlyFields('error', fields, ['code', 'message', 'generation', 'role']);
  const code = textField('error', fields, 'code', /^[a-z][a-z0-9-]{0,63}$/, 'a word of a-z, 0-9 and -');
  const message = textField('error', fields, 'message', /^/, 'text');
  // It goes to people's terminals, which obey control characters.
  const body: Body = { type: 'error', code, message: message.replace(/[^\P{Cc}\n]/gu, '?') };
  const { generation, role } = fields;
  if (generation !== undefined) {
    if (!isCount(generation)) refuse('error', 'generation', 'a number below 2^53');
    body.generation = generation;
  }
  if (role !== undefined) {
    body.role = choiceField('error', fields, 'role', ['standby', 'running'] as const);
  }
  return body;
}

function parseTookOver(fields: Fields): Body {
  onlyFields('took-over', fields, ['settledMs', 'claimedMs', 'runsMs']);
  const claimedMs = fields['claimedMs'] === null ? null : durationField('took-over', fields, 'claimedMs');
  const settledMs = durationField('took-over', fields, 'settledMs');
  return { type: 'took-over', settledMs, claimedMs, runsMs: durationField('took-over', fields, 'runsMs') };
}

function durationField(type: string, fields: Fields, key: string): number {
  const value = fields[key];
  if (typeof value !== 'number' || !(value >= 0)) refuse(type, key, 'a number of milliseconds');
  return value;
}

function parseObject(type: string, payload: Uint8Array): Fields {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(payload));
  } catch (error) {
    throw new ProtocolError(
      'bad-payload',
      `${type}: the payload is not JSON in UTF-8: ${(error as Error).message}`,
    );
  }
  if (!isObject(value)) throw new ProtocolError('bad-payload', `${type}: the payload is not a JSON object`);
  checkDepth(type, value);
  return value;
}

/** Walks level by level with a list of its own: the call stack is what it protects. */
function checkDepth(type: string, root: unknown): void {
  let level: unknown[] = [root];
  for (let depth = 0; level.length > 0; depth++) {
    if (depth > DEPTH_MAX)
      throw new ProtocolError('bad-payload', `${type}: nested deeper than ${DEPTH_MAX} levels`);
    level = level.flatMap((value) =>
      typeof value === 'object' && value !== null ? Object.values(value) : [],
    );
  }
}

/** The version is what allows new fields; an unknown one within a version is a mistake that should be seen. */
function onlyFields(type: string, fields: Fields, allowed: string[]): void {
  const unknown = Object.keys(fields).find((key) => !allowed.includes(key));
  if (unknown !== undefined) {
    throw new ProtocolError('bad-payload', `${type}: unknown field ${JSON.stringify(unknown.slice(0, 64))}`);
  }
}

function textField(type: string, fields: Fields, key: string, pattern: RegExp, expected: string): string {
  const value = fields[key];
  if (typeof value !== 'string' || !pattern.test(value)) refuse(type, key, expected);
  return value;
}

function choiceField<T extends string>(type: string, fields: Fields, key: string, choices: readonly T[]): T {
  const value = choices.find((choice) => choice === fields[key]);
  if (value === undefined) refuse(type, key, `one of ${choices.join(', ')}`);
  return value;
}

function isObject(value: unknown): value is Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function refuse(type: string, key: string, expected: string): never {
  throw new ProtocolError('bad-payload', `${type}: ${key} must be ${expected}`);
}
