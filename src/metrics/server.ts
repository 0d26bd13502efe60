/** GET /metrics and GET /health, and nothing else, on a port or a unix socket. It reads nothing but requests, and changes nothing. */
import { rmSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { answersAt, listenAtPath, listening } from '../agent/socket-path.ts';
import { formatMetricsAddress, type MetricsAddress } from './address.ts';
import { CONTENT_TYPE, exposition } from './exposition.ts';
import { familiesOf } from './families.ts';
import { healthOf } from './health.ts';
import { formatFor } from './negotiation.ts';
import type { Readings } from './readings.ts';

export interface MetricsServerOptions {
  address: MetricsAddress;
  /** Of this program. */
  version: string;
  /** Asked for each answer; requests that come meanwhile share it. */
  readings: () => Readings | Promise<Readings>;
}

/** Where metrics can't be served, and why. */
export class MetricsListenError extends Error {
  override readonly name = 'MetricsListenError';
}

const CONNECTIONS_MAX = 16;
const HEADER_BYTES_MAX = 8192;
/** From its beginning to its end, for one request and its answer: who is slow holds nothing for longer. */
const CONNECTION_MS_MAX = 10_000;

interface Answer {
  code: number;
  type: string;
  body: string;
}

export class MetricsServer {
  readonly #options: MetricsServerOptions;
  readonly #server: Server;
  #asking: Promise<Readings> | null = null;

  /** Throws MetricsListenError. A unix socket has mode 0660; one that a dead process has left is replaced. */
  static async listen(
    options: MetricsServerOptions,
    connectionMs = CONNECTION_MS_MAX,
  ): Promise<MetricsServer> {
    const metrics = new MetricsServer(options, connectionMs);
    try {
      await metrics.#listen();
    } catch (error) {
      const where = formatMetricsAddress(options.address);
      throw new MetricsListenError(`metrics can't be served at ${where}: ${(error as Error).message}`);
    }
    return metrics;
  }

  private constructor(options: MetricsServerOptions, connectionMs: number) {
    this.#options = options;
    this.#server = createServer({ maxHeaderSize: HEADER_BYTES_MAX }, (request, response) => {
      response.shouldKeepAlive = false;
      void this.#answer(request).then((answer) => reply(response, answer));
    });
    this.#server.maxConnections = CONNECTIONS_MAX;
    this.#server.on('connection', (socket) => {
      const deadline = setTimeout(() => socket.destroy(), connectionMs).unref();
      socket.once('close', () => clearTimeout(deadline));
    });
  }

  /** With the port that the kernel chose, where it was to. */
  get address(): MetricsAddress {
    const { address } = this.#options;
    return 'path' in address
      ? address
      : { host: address.host, port: (this.#server.address() as AddressInfo).port };
  }

  /** At once; answers under way are cut off. */
  close(): void {
    const { address } = this.#options;
    this.#server.close();
    this.#server.closeAllConnections();
    if ('path' in address) rmSync(address.path, { force: true });
  }

  async #listen(): Promise<void> {
    const { address } = this.#options;
    if ('path' in address) {
      if (await answersAt(address.path)) throw new Error('somebody already listens there');
      await listenAtPath(this.#server, address.path);
      return;
    }
    await listening(this.#server, address);
  }

  async #answer({ method, url = '', headers }: IncomingMessage): Promise<Answer> {
    const path = method === 'GET' ? url.split('?', 1)[0] : '';
    try {
      if (path === '/metrics') return await this.#metrics(headers.accept);
      if (path === '/health') return await this.#health();
    } catch (error) {
      return plain(500, `${(error as Error).message}\n`);
    }
    return plain(404, 'There is GET /metrics and GET /health.\n');
  }

  async #metrics(accept: string | undefined): Promise<Answer> {
    const format = formatFor(accept);
    const body = exposition(familiesOf(await this.#readings(), this.#options.version), format);
    return { code: 200, type: CONTENT_TYPE[format], body };
  }

  async #health(): Promise<Answer> {
    const health = healthOf(await this.#readings());
    return {
      code: health.healthy ? 200 : 503,
      type: 'application/json; charset=utf-8',
      body: `${JSON.stringify(health)}\n`,
    };
  }

  /** However many ask at once, the agents are asked once. */
  #readings(): Promise<Readings> {
    this.#asking ??= (async () => this.#options.readings())().finally(() => {
      this.#asking = null;
    });
    return this.#asking;
  }
}

function plain(code: number, body: string): Answer {
  return { code, type: 'text/plain; charset=utf-8', body };
}

function reply(response: ServerResponse, { code, type, body }: Answer): void {
  response.writeHead(code, {
    'Content-Type': type,
    'Content-Length': Buffer.byteLength(body),
    'Cache-Control': 'no-store',
    'X-Content-Type-Options': 'nosniff',
  });
  response.end(body);
}
