/** What QEMU sends, line by line (QEMU's docs/interop/qmp-spec, section 2), checked for form. */
import type { QemuVersion, QmpEvent } from './commands.ts';
import { type Json, type JsonObject, parseJson } from './json.ts';

export type ServerMessage =
  | { kind: 'event'; event: QmpEvent }
  | { kind: 'return'; id: Json | undefined; value: Json }
  | { kind: 'error'; id: Json | undefined; errorClass: string; desc: string };

export interface Greeting {
  version: QemuVersion;
  /** What the client may enable (section 2.1): "oob" or nothing. */
  capabilities: readonly Json[];
}

/**
 * What QEMU greets with (section 2.2), or null when `line` is no greeting: an HMP monitor, a guest agent, a serial console. `event` for one that
 * was meant for the client before us: QEMU has seen it go only when the next one is there, and may have written by then (seen with 7.2).
 */
export function parseGreeting(line: string): Greeting | 'event' | null {
  let value: Json;
  try {
    value = parseJson(line);
  } catch (error) {
    if (error instanceof SyntaxError) return null;
    throw error;
  }
  const { QMP: greeting, event } = objectOr(value);
  if (typeof event === 'string') return 'event';
  const { version, capabilities } = objectOr(greeting);
  const { qemu } = objectOr(version);
  const { major, minor, micro } = objectOr(qemu);
  if (typeof major !== 'number' || typeof minor !== 'number' || typeof micro !== 'number') return null;
  return {
    version: { major, minor, micro },
    capabilities: Array.isArray(capabilities) ? capabilities : [],
  };
}

/** Sections 2.4 (responses) and 2.5 (events). Throws SyntaxError for what isn't JSON and TypeError for what isn't QMP. */
export function parseServerMessage(line: string): ServerMessage {
  const value = parseJson(line);
  if (!isObject(value)) throw malformed('not an object', line);
  const { event, id, return: returned, error } = value;
  if (event !== undefined) return { kind: 'event', event: eventOf(value, line) };
  if ((returned === undefined) === (error === undefined))
    throw malformed('not exactly one of return, error and event', line);
  if (returned !== undefined) return { kind: 'return', id, value: returned };
  const { class: errorClass, desc } = objectOr(error);
  if (typeof errorClass !== 'string' || typeof desc !== 'string')
    throw malformed('an error without class and desc', line);
  return { kind: 'error', id, errorClass, desc };
}

function eventOf(message: JsonObject, line: string): QmpEvent {
  const { event, data, timestamp } = message;
  const { seconds, microseconds } = objectOr(timestamp);
  const timed = typeof seconds === 'number' && typeof microseconds === 'number';
  if (typeof event !== 'string' || !timed || (data !== undefined && !isObject(data)))
    throw malformed('a malformed event', line);
  return message as unknown as QmpEvent;
}

function isObject(value: Json | undefined): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** So that a member can be looked for without a question at every level. */
function objectOr(value: Json | undefined): JsonObject {
  return isObject(value) ? value : {};
}

export function malformed(what: string, line: string): TypeError {
  const excerpt = line.length <= 200 ? line.trimEnd() : `${line.slice(0, 200)}...`;
  return new TypeError(`${what}: ${excerpt}`);
}
