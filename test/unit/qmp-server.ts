/** A QMP server on a unix socket that says whatever a test wants it to. */
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';

export const GREETING =
  '{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}\r\n';

export interface Request {
  execute: string;
  arguments?: Record<string, unknown>;
  id: number;
}

/** Returns what is written back, byte for byte; null for nothing. */
export type Responder = (request: Request, socket: Socket) => string | null;

export const ok = ({ id }: Request, value: unknown = {}) => `${JSON.stringify({ return: value, id })}\r\n`;
export const event = (name: string, data: object) =>
  `${JSON.stringify({ event: name, data, timestamp: { seconds: 1, microseconds: 2 } })}\r\n`;

export class QmpServer {
  readonly path: string;
  readonly requests: Request[] = [];
  /** The arguments of qmp_capabilities. */
  enabled: Record<string, unknown> | null = null;
  /** What arrived in one piece after the negotiation. */
  readonly chunks: string[] = [];
  readonly #folder: string;
  readonly #server: Server;
  readonly #sockets: Socket[] = [];

  static async start(respond: Responder, greeting: string | null = GREETING): Promise<QmpServer> {
    const server = new QmpServer(respond, greeting);
    await new Promise<void>((resolve) => server.#server.listen(server.path, resolve));
    return server;
  }

  private constructor(respond: Responder, greeting: string | null) {
    this.#folder = mkdtempSync(path.join(tmpdir(), 'colo-qmp-'));
    this.path = path.join(this.#folder, 'qmp');
    this.#server = createServer((socket) => {
      this.#sockets.push(socket);
      socket.on('error', () => {}); // a client that went away in the middle is what some tests are about
      if (greeting !== null) socket.write(greeting);
      let text = '';
      socket.on('data', (chunk) => {
        if (!String(chunk).includes('qmp_capabilities')) this.chunks.push(String(chunk));
        const lines = (text + chunk).split('\n');
        text = lines.pop() ?? '';
        const answers = lines.map((line) => this.#answer(JSON.parse(line) as Request, respond, socket));
        const answer = answers.filter((reply) => reply !== null).join('');
        if (answer !== '') socket.write(answer);
      });
    });
  }

  get connections(): number {
    return this.#sockets.length;
  }

  send(text: string): void {
    for (const socket of this.#sockets) socket.write(text);
  }

  hangUp(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  async stop(): Promise<void> {
    this.hangUp();
    await new Promise((resolve) => this.#server.close(resolve));
    rmSync(this.#folder, { recursive: true });
  }

  #answer(request: Request, respond: Responder, socket: Socket): string | null {
    if (request.execute === 'qmp_capabilities') {
      this.enabled = request.arguments ?? null;
      return ok(request);
    }
    this.requests.push(request);
    return respond(request, socket);
  }
}
