/**
 * JSON as QMP speaks it: 64-bit integers stay exact. An integer beyond 2^53 - 1 is parsed as a `bigint`, every other number as a `number`, and a
 * `bigint` is written as an integer. JSON.parse would round host addresses and uint64 counters without a word.
 */

export type Json = null | boolean | number | bigint | string | Json[] | JsonObject;
export interface JsonObject {
  [key: string]: Json;
}

/** QEMU's own parser stops at the same depth (qobject/json-streamer.c, MAX_NESTING). */
const MAX_NESTING = 1024;

/** Only a run of 16 digits can be an integer beyond 2^53 - 1 = 9007199254740991. */
const MAYBE_BEYOND_DOUBLE = /\d{16}/;

/** Throws SyntaxError for anything but exactly one JSON value. */
export function parseJson(text: string): Json {
  return MAYBE_BEYOND_DOUBLE.test(text) ? new ExactParser(text).parse() : (JSON.parse(text) as Json);
}

/** Members that are `undefined` are left out, as JSON.stringify does. Throws TypeError for a value that JSON doesn't have. */
export function stringifyJson(value: unknown): string {
  switch (typeof value) {
    case 'bigint':
      return value.toString();
    case 'string':
    case 'boolean':
      return JSON.stringify(value);
    case 'number':
      if (!Number.isFinite(value)) throw new TypeError(`${value} is not a JSON number`);
      return JSON.stringify(value);
    case 'object':
      if (value === null) return 'null';
      return Array.isArray(value) ? `[${value.map(stringifyJson).join(',')}]` : stringifyObject(value);
    default:
      throw new TypeError(`a ${typeof value} is not a JSON value`);
  }
}

function stringifyObject(value: object): string {
  const members: string[] = [];
  for (const [key, member] of Object.entries(value)) {
    if (member !== undefined) members.push(`${JSON.stringify(key)}:${stringifyJson(member)}`);
  }
  return `{${members.join(',')}}`;
}

const SPACE = /[ \t\n\r]*/y;
const NUMBER = /-?(?:0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?/y;
const KEYWORD = /true|false|null/y;
const KEYWORD_VALUES: Record<string, Json> = { true: true, false: false, null: null };

/** A recursive descent over RFC 8259's grammar, for the few lines in which a number may need 64 bits. */
class ExactParser {
  readonly #text: string;
  #at = 0;
  #depth = 0;

  constructor(text: string) {
    this.#text = text;
  }

  parse(): Json {
    const value = this.#value();
    this.#space();
    if (this.#at !== this.#text.length) this.#fail();
    return value;
  }

  #value(): Json {
    this.#space();
    switch (this.#text[this.#at]) {
      case '{':
        return this.#nested(() => this.#object());
      case '[':
        return this.#nested(() => this.#array());
      case '"':
        return this.#string();
      case 't':
      case 'f':
      case 'n':
        return KEYWORD_VALUES[this.#match(KEYWORD)] as Json;
      default:
        return this.#number();
    }
  }

  #nested<T>(parse: () => T): T {
    this.#depth += 1;
    if (this.#depth > MAX_NESTING) throw new SyntaxError(`JSON nested deeper than ${MAX_NESTING}`);
    this.#at += 1;
    const value = parse();
    this.#depth -= 1;
    return value;
  }

  #object(): JsonObject {
    const object: JsonObject = {};
    if (this.#skip('}')) return object;
    do {
      this.#space();
      const key = this.#string();
      if (!this.#skip(':')) this.#fail();
      const value = this.#value();
      // An assignment to `__proto__` would set the prototype instead of a member.
      if (key === '__proto__') {
        Object.defineProperty(object, key, { value, enumerable: true, configurable: true, writable: true });
      } else {
        object[key] = value;
      }
    } while (this.#skip(','));
    if (!this.#skip('}')) this.#fail();
    return object;
  }

  #array(): Json[] {
    const array: Json[] = [];
    if (this.#skip(']')) return array;
    do array.push(this.#value());
    while (this.#skip(','));
    if (!this.#skip(']')) this.#fail();
    return array;
  }

  #string(): string {
    const from = this.#at;
    if (this.#text[from] !== '"') this.#fail();
    let end = from + 1;
    while (end < this.#text.length && this.#text[end] !== '"') end += this.#text[end] === '\\' ? 2 : 1;
    this.#at = end + 1;
    // Escapes, control characters and a missing end are judged by JSON.parse, which gets the whole literal.
    return JSON.parse(this.#text.slice(from, this.#at)) as string;
  }

  #number(): number | bigint {
    NUMBER.lastIndex = this.#at;
    const match = NUMBER.exec(this.#text);
    if (!match) return this.#fail();
    this.#at = NUMBER.lastIndex;
    const number = Number(match[0]);
    const isInteger = match[1] === undefined && match[2] === undefined;
    return isInteger && !Number.isSafeInteger(number) ? BigInt(match[0]) : number;
  }

  #space(): void {
    SPACE.lastIndex = this.#at;
    SPACE.exec(this.#text);
    this.#at = SPACE.lastIndex;
  }

  #skip(character: string): boolean {
    this.#space();
    if (this.#text[this.#at] !== character) return false;
    this.#at += 1;
    return true;
  }

  #match(pattern: RegExp): string {
    pattern.lastIndex = this.#at;
    const match = pattern.exec(this.#text);
    if (!match) return this.#fail();
    this.#at = pattern.lastIndex;
    return match[0];
  }

  #fail(): never {
    const found = this.#at < this.#text.length ? JSON.stringify(this.#text[this.#at]) : 'the end';
    throw new SyntaxError(`unexpected ${found} at position ${this.#at} of JSON`);
  }
}
