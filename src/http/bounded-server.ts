/** An HTTP server that is a side matter of its process: it reads nothing but the heads of requests, and whoever floods it, or is slow, holds little of it, and for a short time. */
import { rmSync } from 'node:fs';
import { createServer, type IncomingMessage, type OutgoingHttpHeaders, type Server } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { answersAt, listenAtPath, listening } from '../agent/socket-path.ts';
import { formatHttpAddress, type HttpAddress } from './address.ts';

export interface Answer {
  code: number;
  headers: OutgoingHttpHeaders;
  body: string | Buffer;
}

export interface HttpLimits {
  connectionsMax: number;
  /** From the beginning of a connection to its end, for one request and its answer. */
  connectionMsMax: number;
}

export interface BoundedServerOptions {
  /** What isn't served where it can't listen, in the plural: `metrics`. */
  what: string;
  address: HttpAddress;
  limits: HttpLimits;
  /** Never rejects. */
  answer: (request: IncomingMessage) => Answer | Promise<Answer>;
}

/** Where something can't be served, and why. */
export class HttpListenError extends Error {
  override readonly name = 'HttpListenError';
}

const HEADER_BYTES_MAX = 8192;

export class BoundedServer {
  readonly #address: HttpAddress;
  readonly #server: Server;

  /** Throws HttpListenError. A unix socket has mode 0660; one that a dead process has left is replaced. */
  static async listen(options: BoundedServerOptions): Promise<BoundedServer> {
    const server = new BoundedServer(options);
    try {
      await server.#listen();
    } catch (error) {
      const where = formatHttpAddress(options.address);
      throw new HttpListenError(`${options.what} can't be served at ${where}: ${(error as Error).message}`);
    }
    return server;
  }

  private constructor({ address, limits, answer }: BoundedServerOptions) {
    this.#address = address;
    const asked = new WeakSet<Socket>();
    this.#server = createServer({ maxHeaderSize: HEADER_BYTES_MAX }, async (request, response) => {
      // Node.js reads ahead: thousands may have come in one piece. The end of the first answer is that of the connection.
      if (asked.has(request.socket)) return;
      asked.add(request.socket);
      response.shouldKeepAlive = false;
      const { code, headers, body } = await answer(request);
      response.writeHead(code, {
        ...headers,
        'Content-Length': Buffer.byteLength(body),
        'Cache-Control': 'no-store',
        'X-Content-Type-Options': 'nosniff',
      });
      response.end(body);
    });
    this.#server.maxConnections = limits.connectionsMax;
    this.#server.on('connection', (socket) => {
      const deadline = setTimeout(() => socket.destroy(), limits.connectionMsMax).unref();
      socket.once('close', () => clearTimeout(deadline));
    });
  }

  /** With the port that the kernel chose, where it was to. */
  get address(): HttpAddress {
    if ('path' in this.#address) return this.#address;
    return { host: this.#address.host, port: (this.#server.address() as AddressInfo).port };
  }

  /** At once; answers under way are cut off. */
  close(): void {
    this.#server.close();
    this.#server.closeAllConnections();
    if ('path' in this.#address) rmSync(this.#address.path, { force: true });
  }

  async #listen(): Promise<void> {
    if ('path' in this.#address) {
      if (await answersAt(this.#address.path)) throw new Error('somebody already listens there');
      await listenAtPath(this.#server, this.#address.path);
      return;
    }
    await listening(this.#server, this.#address);
  }
}
