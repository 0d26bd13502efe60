/** The page of all VMs of a host (docs/web.md): read-only, for who was let in. */
import { randomUUID } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { hostname } from 'node:os';
import type { TakeOverRecord } from '../agent/take-over-record.ts';
import type { HttpAddress } from '../http/address.ts';
import { type Answer, BoundedServer } from '../http/bounded-server.ts';
import { Access, SESSION_MS } from './access.ts';
import { readAssets } from './assets.ts';
import { isOwnHost } from './host.ts';
import { cookieName, cookieOf, linkTo } from './link.ts';
import { enteredPage, refusedPage, STYLE_HASH } from './refusal.ts';
import { Sampler, type SamplerOptions } from './sampler.ts';
import { type KnownVm, type Shown, type ShownEvent, shownVm } from './shown.ts';

export interface WebServerOptions extends Pick<SamplerOptions, 'readings' | 'onFailure'> {
  address: HttpAddress;
  version: string;
  vms: () => KnownVm[];
  /** The latest ones of those that come after the one with that id, the oldest first, and the last id that there is. */
  events: (after: number) => { events: ShownEvent[]; takeOvers: TakeOverRecord[]; lastId: number };
}

const CONNECTIONS_MAX = 32;
const CONNECTION_MS_MAX = 10_000;

const SECURITY_HEADERS = {
  'Content-Security-Policy': [
    "default-src 'none'",
    "script-src 'self'",
    `style-src 'self' '${STYLE_HASH}'`,
    "img-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  ].join('; '),
  'Cross-Origin-Resource-Policy': 'same-origin',
  'Referrer-Policy': 'no-referrer',
};

export class WebServer {
  readonly #options: WebServerOptions;
  readonly #run = randomUUID();
  readonly #access = new Access();
  readonly #assets = readAssets();
  #sampler!: Sampler;
  #server!: BoundedServer;

  /** Throws HttpListenError. */
  static async listen(options: WebServerOptions, connectionMsMax = CONNECTION_MS_MAX): Promise<WebServer> {
    const web = new WebServer(options);
    web.#server = await BoundedServer.listen({
      what: 'web pages',
      address: options.address,
      limits: { connectionsMax: CONNECTIONS_MAX, connectionMsMax },
      answer: (request) => web.#answer(request),
    });
    web.#sampler = new Sampler(options);
    return web;
  }

  private constructor(options: WebServerOptions) {
    this.#options = options;
  }

  /** With the port that the kernel chose, where it was to. */
  get address(): HttpAddress {
    return this.#server.address;
  }

  /** Lets one browser in, once, within two minutes. */
  link(): string {
    return linkTo(this.address, this.#access.link(performance.now()));
  }

  /** At once; answers under way are cut off. */
  close(): void {
    this.#sampler.close();
    this.#server.close();
  }

  #answer(request: IncomingMessage): Answer {
    let answer: Answer;
    try {
      answer = this.#route(request);
    } catch (error) {
      answer = plain(500, `${(error as Error).message}\n`);
    }
    return { ...answer, headers: { ...SECURITY_HEADERS, ...answer.headers } };
  }

  #route({ method, url = '', headers }: IncomingMessage): Answer {
    if (!isOwnHost(headers.host))
      return plain(
        421,
        'No such host is here: open the page by an address, as localhost, or by the host’s own name.\n',
      );
    if (method !== 'GET')
      return { ...plain(405, 'Nothing can be changed here: GET.\n'), headers: { Allow: 'GET' } };
    const [path = '', query] = url.split('?', 2);
    const asked = new URLSearchParams(query);
    if (path === '/enter') return this.#enter(asked.get('token') ?? '');
    const session = cookieOf(headers.cookie, cookieName(this.address));
    if (session === null || !this.#access.mayLook(session, performance.now())) return refusedPage();
    if (path === '/vms') return json(this.#shown(asked));
    return this.#assets.get(path) ?? plain(404, 'There is no such page.\n');
  }

  #enter(token: string): Answer {
    const session = this.#access.enter(token, performance.now());
    if (session === null) return refusedPage();
    const cookie = `${cookieName(this.address)}=${session}; HttpOnly; SameSite=Strict; Path=/; Max-Age=${SESSION_MS / 1000}`;
    return enteredPage(cookie);
  }

  #shown(asked: URLSearchParams): Shown {
    this.#sampler.watch();
    const known = asked.get('run') === this.#run;
    const after = known ? numberOf(asked.get('event')) : 0;
    const { events, takeOvers, lastId } = this.#options.events(after);
    return {
      run: this.#run,
      node: hostname(),
      version: this.#options.version,
      timeMs: Date.now(),
      vms: this.#options.vms().map((vm) => shownVm(vm, this.#sampler.sample(vm.vm))),
      events,
      lastEvent: lastId,
      takeOvers,
      history: this.#history(asked.get('vm') ?? '', known ? numberOf(asked.get('row')) : 0),
    };
  }

  #history(vm: string, first: number): Shown['history'] {
    const history = this.#sampler.history(vm);
    if (history === null) return null;
    const rows = history.from(first);
    return { vm, first: history.rows - rows.length, rows };
  }
}

function numberOf(text: string | null): number {
  return /^\d{1,15}$/.test(text ?? '') ? Number(text) : 0;
}

function json(value: unknown): Answer {
  return {
    code: 200,
    headers: { 'Content-Type': 'application/json; charset=utf-8' },
    body: JSON.stringify(value),
  };
}

function plain(code: number, body: string): Answer {
  return { code, headers: { 'Content-Type': 'text/plain; charset=utf-8' }, body };
}
