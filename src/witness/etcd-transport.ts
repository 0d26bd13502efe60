/** JSON over HTTP to several endpoints of one etcd cluster: the one that answered last comes first, and its connection is kept. */
import {
  Agent as HttpAgent,
  type IncomingMessage,
  type RequestOptions,
  request as requestHttp,
} from 'node:http';
import { Agent as HttpsAgent, request as requestHttps } from 'node:https';
import { EtcdError } from './etcd-error.ts';

export interface ConnectOptions {
  /** All of one scheme. */
  endpoints: readonly URL[];
  /** PEM; null: the system's. */
  ca: string | null;
  /** PEM, for etcd's --client-cert-auth. */
  cert: string | null;
  key: string | null;
  /** For each endpoint that is tried. */
  requestTimeoutMs: number;
}

export interface Reply {
  status: number;
  body: Record<string, unknown>;
  /** Who answered; for messages. */
  endpoint: string;
}

/** Ours are a few hundred bytes; nobody may make us keep more. */
const REPLY_BYTES_MAX = 64 * 1024;

export class EtcdTransport {
  readonly #options: ConnectOptions;
  readonly #agent: HttpAgent | HttpsAgent;
  readonly #secure: boolean;
  /** Index of the endpoint that is asked first. */
  #first = 0;
  #closed = false;

  /** Throws when a certificate or key can't be used. */
  constructor(options: ConnectOptions) {
    const { endpoints, ca, cert, key } = options;
    this.#options = options;
    this.#secure = endpoints[0]?.protocol === 'https:';
    const keep = { keepAlive: true, maxSockets: 4 };
    const tls = { ...(ca !== null && { ca }), ...(cert !== null && { cert }), ...(key !== null && { key }) };
    this.#agent = this.#secure ? new HttpsAgent({ ...keep, ...tls }) : new HttpAgent(keep);
  }

  /** Asks one endpoint after the other. Rejects with EtcdError when none gives an answer that can be read; the last reasons are in it. */
  async post(path: string, request: object, token: string | null): Promise<Reply> {
    const { endpoints } = this.#options;
    const failures: string[] = [];
    let malformed = false;
    for (let offset = 0; offset < endpoints.length; offset++) {
      const index = (this.#first + offset) % endpoints.length;
      try {
        const reply = await this.#postTo(endpoints[index] as URL, path, JSON.stringify(request), token);
        if (isUnavailable(reply)) throw new Error(String(reply.body['error']));
        this.#first = index;
        return reply;
      } catch (error) {
        malformed ||= error instanceof EtcdError;
        failures.push(`${endpoints[index]?.host}: ${explain(error as Error)}`);
        if (this.#closed) break;
      }
    }
    throw new EtcdError(malformed ? 'malformed' : 'unreachable', failures.join('; '));
  }

  close(): void {
    this.#closed = true;
    this.#agent.destroy();
  }

  async #postTo(endpoint: URL, path: string, body: string, token: string | null): Promise<Reply> {
    try {
      return await this.#exchange(endpoint, path, body, token);
    } catch (error) {
      // etcd has closed a connection that lay idle just as it was used again: that says nothing about etcd.
      if (!(error instanceof IdleConnectionLost) || this.#closed) throw error;
      return this.#exchange(endpoint, path, body, token);
    }
  }

  #exchange(endpoint: URL, path: string, body: string, token: string | null): Promise<Reply> {
    const { requestTimeoutMs } = this.#options;
    return new Promise((resolve, reject) => {
      const options: RequestOptions = {
        agent: this.#agent,
        method: 'POST',
        headers: {
          'Content-Type': 'application/json',
          'Content-Length': Buffer.byteLength(body),
          ...(token !== null && { Authorization: token }),
        },
      };
      const url = new URL(path, endpoint);
      const request = this.#secure ? requestHttps(url, options) : requestHttp(url, options);
      // From the first step on, name resolution too: node's own time-out counts idle times only.
      const timer = setTimeout(
        () => request.destroy(new Error(`no answer within ${requestTimeoutMs} ms`)),
        requestTimeoutMs,
      );
      request.on('error', (error: NodeJS.ErrnoException) => {
        clearTimeout(timer);
        const stale = request.reusedSocket && (error.code === 'ECONNRESET' || error.code === 'EPIPE');
        reject(stale ? new IdleConnectionLost(error.message) : error);
      });
      request.on('response', (response) => {
        const fail = (error: Error) => {
          clearTimeout(timer);
          request.destroy();
          reject(error);
        };
        readBody(response)
          .then((text) => {
            clearTimeout(timer);
            resolve({
              status: response.statusCode ?? 0,
              body: parse(endpoint, response, text),
              endpoint: endpoint.host,
            });
          })
          .catch(fail);
      });
      request.end(body);
    });
  }
}

class IdleConnectionLost extends Error {}

function readBody(response: IncomingMessage): Promise<string> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let bytes = 0;
    response.on('data', (chunk: Buffer) => {
      bytes += chunk.length;
      if (bytes > REPLY_BYTES_MAX) {
        reject(new EtcdError('malformed', `the answer is longer than ${REPLY_BYTES_MAX} bytes: is it etcd?`));
        response.destroy();
      } else {
        chunks.push(chunk);
      }
    });
    response.on('end', () => resolve(Buffer.concat(chunks).toString()));
    response.on('error', reject);
    response.on('close', () => reject(new Error('the connection ended in the middle of the answer')));
  });
}

function parse(endpoint: URL, response: IncomingMessage, text: string): Record<string, unknown> {
  let body: unknown;
  try {
    body = JSON.parse(text);
  } catch {
    body = null;
  }
  if (typeof body === 'object' && body !== null && !Array.isArray(body))
    return body as Record<string, unknown>;
  throw new EtcdError(
    'malformed',
    `the answer (HTTP status ${response.statusCode}) is no JSON object: is ${endpoint.host} etcd 3.4 or newer, and the port that of its clients?`,
  );
}

/** gRPC's codes for a member that can't answer now, cut off from the others say, where another might. */
function isUnavailable({ status, body }: Reply): boolean {
  const code = body['code'];
  return status >= 500 || code === 14 || code === 4;
}

/** What OpenSSL says of certificates is short; say what to do about it. */
function explain(error: Error): string {
  const { code } = error as NodeJS.ErrnoException;
  if (code === undefined) return error.message;
  if (/CERT|SELF_SIGNED|ISSUER|LEAF_SIGNATURE/.test(code) && !/^ERR_SSL/.test(code))
    return `its certificate is not accepted (${error.message}): is --witness-ca the CA that signed it?`;
  if (/^ERR_SSL|ALERT/.test(code))
    return `TLS failed (${error.message}): does it speak TLS, and accept --witness-cert?`;
  return error.message || code;
}
