/**
 * The two requests that arbitration makes of etcd (3.4 or newer), through its JSON gateway: a linearisable read of one key, and a put that happens only if
 * the key is still at the revision that the caller has seen. Deliberately nothing else: no lease decides who runs, and etcd's lock and election services hand
 * success to a waiter whose lease has run out.
 */
import { EtcdError } from './etcd-error.ts';
import { type ConnectOptions, EtcdTransport, type Reply } from './etcd-transport.ts';

export interface EtcdOptions extends ConnectOptions {
  user: string | null;
  password: string | null;
}

export interface KeyValue {
  value: string;
  /** etcd's mod_revision: an opaque number that never comes back, also when the key is removed and made again. */
  revision: string;
}

/** The revision of a key that isn't there. */
export const ABSENT = '0';

export interface PutResult {
  succeeded: boolean;
  /** What the key holds now: what was put, or what stands in its way; null: it isn't there. */
  current: KeyValue | null;
}

/** gRPC's code for a token that has expired, or that an etcd which has restarted doesn't know. */
const UNAUTHENTICATED = 16;
/** What etcd says, with the code of a malformed request, of a token from before the last change of users or roles. */
const TOKEN_TOO_OLD = /revision of auth store is old/;

export class EtcdClient {
  readonly #transport: EtcdTransport;
  readonly #options: EtcdOptions;
  #token: Promise<string> | null = null;

  constructor(options: EtcdOptions) {
    this.#options = options;
    this.#transport = new EtcdTransport(options);
  }

  /** Null when there is no such key. Rejects with EtcdError. */
  async read(key: string): Promise<KeyValue | null> {
    // Linearisable: without `serializable`, a member that is cut off can't answer from what it had.
    return keyValueOf(await this.#call('/v3/kv/range', { key: base64(key) }));
  }

  /**
   * Puts `value` if the key's revision is still `expected` (ABSENT: if there is no key). Rejects with EtcdError: then it may have happened, or may happen
   * later. It may be asked for again: of puts with one `expected` at most one ever succeeds.
   */
  async putIf(key: string, expected: string, value: string): Promise<PutResult> {
    const reply = await this.#call('/v3/kv/txn', {
      compare: [{ key: base64(key), target: 'MOD', result: 'EQUAL', mod_revision: expected }],
      success: [{ request_put: { key: base64(key), value: base64(value) } }],
      failure: [{ request_range: { key: base64(key) } }],
    });
    if (reply.body['succeeded'] === true) {
      const header = objectOf(reply, reply.body['header']);
      return { succeeded: true, current: { value, revision: revisionOf(reply, header['revision']) } };
    }
    const [response] = listOf(reply, reply.body['responses']);
    const range = objectOf(reply, objectOf(reply, response)['response_range']);
    return { succeeded: false, current: keyValueOf({ ...reply, body: range }) };
  }

  /** Requests under way fail. */
  close(): void {
    this.#transport.close();
  }

  async #call(path: string, request: object): Promise<Reply> {
    if (this.#options.user === null) return accepted(await this.#transport.post(path, request, null));
    const token = this.#token ?? this.#authenticate();
    const reply = await this.#transport.post(path, request, await token);
    if (!isStale(reply)) return accepted(reply);
    if (this.#token === token) this.#token = null;
    return accepted(await this.#transport.post(path, request, await (this.#token ?? this.#authenticate())));
  }

  /** A token that couldn't be had isn't kept. */
  #authenticate(): Promise<string> {
    const token = this.#requestToken();
    this.#token = token;
    token.catch(() => {
      if (this.#token === token) this.#token = null;
    });
    return token;
  }

  async #requestToken(): Promise<string> {
    const { user, password } = this.#options;
    const reply = accepted(
      await this.#transport.post('/v3/auth/authenticate', { name: user, password: password ?? '' }, null),
    );
    const { token } = reply.body;
    if (typeof token !== 'string' || !/^[\x21-\x7e]{1,8192}$/.test(token))
      throw malformed(reply, 'there is no token in it');
    return token;
  }
}

/** The token isn't good any more: with a new one the request may be. */
function isStale({ body }: Reply): boolean {
  return body['code'] === UNAUTHENTICATED || TOKEN_TOO_OLD.test(String(body['error']));
}

function accepted(reply: Reply): Reply {
  const { status, body, endpoint } = reply;
  if (status === 200 && body['error'] === undefined) return reply;
  const text = typeof body['error'] === 'string' ? body['error'].slice(0, 512) : `HTTP status ${status}`;
  const grpc = typeof body['code'] === 'number' ? body['code'] : null;
  throw new EtcdError('refused', `etcd at ${endpoint} refuses: ${text}`, grpc);
}

function keyValueOf(reply: Reply): KeyValue | null {
  // Empty lists and zeros are left out by the gateway.
  const kvs = listOf(reply, reply.body['kvs'] ?? []);
  if (kvs.length === 0) return null;
  const { value = '', mod_revision: revision } = objectOf(reply, kvs[0]);
  if (typeof value !== 'string') throw malformed(reply, 'a value that is no text');
  return { value: Buffer.from(value, 'base64').toString(), revision: revisionOf(reply, revision) };
}

function revisionOf(reply: Reply, value: unknown): string {
  if (typeof value !== 'string' || !/^[1-9]\d{0,18}$/.test(value)) throw malformed(reply, 'no revision');
  return value;
}

function objectOf(reply: Reply, value: unknown): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw malformed(reply, 'a part is missing');
  return value as Record<string, unknown>;
}

function listOf(reply: Reply, value: unknown): unknown[] {
  if (!Array.isArray(value)) throw malformed(reply, 'a list is missing');
  return value;
}

function malformed({ endpoint }: Reply, what: string): EtcdError {
  return new EtcdError(
    'malformed',
    `${endpoint} doesn't answer as etcd does (${what}): is it etcd 3.4 or newer?`,
  );
}

function base64(text: string): string {
  return Buffer.from(text).toString('base64');
}
