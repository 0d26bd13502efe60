/** GET /metrics and GET /health, and nothing else, on a port or a unix socket. It reads nothing but requests, and changes nothing. */
import type { IncomingMessage } from 'node:http';
import type { HttpAddress } from '../http/address.ts';
import { type Answer, BoundedServer } from '../http/bounded-server.ts';
import { CONTENT_TYPE, exposition } from './exposition.ts';
import { familiesOf } from './families.ts';
import { healthOf } from './health.ts';
import { formatFor } from './negotiation.ts';
import type { Readings } from './readings.ts';

export interface MetricsServerOptions {
  address: HttpAddress;
  /** Of this program. */
  version: string;
  /** Asked for each answer; requests that come meanwhile share it. */
  readings: () => Readings | Promise<Readings>;
}

const CONNECTIONS_MAX = 16;
const CONNECTION_MS_MAX = 10_000;

export class MetricsServer {
  readonly #options: MetricsServerOptions;
  #server!: BoundedServer;
  #asking: Promise<Readings> | null = null;

  /** Throws HttpListenError. */
  static async listen(
    options: MetricsServerOptions,
    connectionMsMax = CONNECTION_MS_MAX,
  ): Promise<MetricsServer> {
    const metrics = new MetricsServer(options);
    metrics.#server = await BoundedServer.listen({
      what: 'metrics',
      address: options.address,
      limits: { connectionsMax: CONNECTIONS_MAX, connectionMsMax },
      answer: (request) => metrics.#answer(request),
    });
    return metrics;
  }

  private constructor(options: MetricsServerOptions) {
    this.#options = options;
  }

  /** With the port that the kernel chose, where it was to. */
  get address(): HttpAddress {
    return this.#server.address;
  }

  /** At once; answers under way are cut off. */
  close(): void {
    this.#server.close();
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
    return { code: 200, headers: { 'Content-Type': CONTENT_TYPE[format] }, body };
  }

  async #health(): Promise<Answer> {
    const health = healthOf(await this.#readings());
    return {
      code: health.healthy ? 200 : 503,
      headers: { 'Content-Type': 'application/json; charset=utf-8' },
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
  return { code, headers: { 'Content-Type': 'text/plain; charset=utf-8' }, body };
}
