/**
 * The agent's control socket: newline-delimited JSON, one request and one reply a line.
 *
 *     {"command":"status"}  ->  {"ok":true,"result":{...}}
 *     {"command":"failover","force":"web1"}  ->  {"ok":true,"result":"took over"}
 *     {"command":"drill"}   ->  {"ok":true,"result":{...}}
 *     {"command":"x"}       ->  {"ok":false,"error":{"code":"unknown-command","message":"..."}}
 */
import { rmSync, statSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { native } from '../native/binding.ts';
import type { DrillReport } from './drill-report.ts';
import { answersAt, listenAtPath } from './socket-path.ts';
import type { Status } from './status.ts';
import type { TakeOverRecord } from './take-over-record.ts';

export type ControlCommand = 'status' | 'take-overs' | 'failover' | 'drill' | 'stop';
export const CONTROL_COMMANDS: readonly ControlCommand[] = [
  'status',
  'take-overs',
  'failover',
  'drill',
  'stop',
];

/** Carries a command out; a thrown ControlError becomes the reply's error. */
export interface ControlHandler {
  status(): Status;
  /** Those of this process, the oldest first. */
  takeOvers(): readonly TakeOverRecord[];
  /** `force`: the VM's name, typed by a person who knows that the other side doesn't run. */
  failover(force: string | null): Promise<string>;
  /** Hands the VM over to the standby; resolves when it runs there. */
  drill(): Promise<DrillReport>;
  stop(force: string | null): Promise<string>;
}

/** Whether it is ordered by force. Throws ControlError `refused` when the name isn't this VM's. */
export function isForced(force: string | null, vm: string): boolean {
  if (force === null || force === vm) return force !== null;
  throw new ControlError('refused', `--force names VM ${force}, and this agent's is ${vm}: nothing was done`);
}

export class ControlError extends Error {
  readonly code: string;

  constructor(code: string, message: string) {
    super(message);
    this.code = code;
  }
}

const REQUEST_BYTES_MAX = 4096;
/** From a request's first byte to its end. */
const REQUEST_MS = 5000;
const CLIENTS_MAX = 64;
/** Of one client that asks and doesn't read. */
const UNREAD_BYTES_MAX = 1 << 20;
/** How long a closing connection may take to get its last answer out. */
const LINGER_MS = 1000;

export class ControlServer {
  readonly #server: Server;
  readonly #path: string;
  readonly #run: (request: ControlRequest) => unknown;
  readonly #connections = new Set<Socket>();

  private constructor(socketPath: string, run: (request: ControlRequest) => unknown) {
    this.#path = socketPath;
    this.#run = run;
    this.#server = createServer((socket) => this.#serve(socket));
  }

  /** Listens at `socketPath` (mode 0660), whose folder is made. Throws ControlError `in-use` while another agent answers there. */
  static listen(socketPath: string, handler: ControlHandler): Promise<ControlServer> {
    return ControlServer.answering(socketPath, (request) => runOn(handler, request));
  }

  /** As listen(), for whoever knows other commands: what `run` returns, or resolves with, is the reply's result. */
  static async answering(
    socketPath: string,
    run: (request: ControlRequest) => unknown,
  ): Promise<ControlServer> {
    if (await answersAt(socketPath)) {
      throw new ControlError(
        'in-use',
        `another colo-agent already listens at ${socketPath}; give --control another path`,
      );
    }
    const control = new ControlServer(socketPath, run);
    await listenAtPath(control.#server, socketPath);
    return control;
  }

  close(): void {
    this.#server.close();
    for (const socket of this.#connections) endSoon(socket);
    rmSync(this.#path, { force: true });
  }

  /**
   * Why the process at the other end can't command this agent; null when it can. The socket's mode says the same, as long as nobody has
   * changed it, or the folder's.
   */
  #objection(socket: Socket): ControlError | null {
    if (this.#connections.size >= CLIENTS_MAX) {
      return new ControlError(
        'busy',
        `${CLIENTS_MAX} clients are connected to ${this.#path} already: end one of them`,
      );
    }
    try {
      const { uid, gid, groups } = native.peerCredentials(descriptorOf(socket));
      if (uid === 0 || uid === process.geteuid?.()) return null;
      if ([gid, ...groups].includes(statSync(this.#path).gid)) return null;
      const message = `user ${uid} is neither root nor of the group of ${this.#path}`;
      return new ControlError('not-permitted', message);
    } catch (error) {
      return new ControlError('not-permitted', (error as Error).message); // it has gone already, perhaps
    }
  }

  #serve(socket: Socket): void {
    const objection = this.#objection(socket);
    if (objection !== null) {
      socket.on('error', () => socket.destroy());
      socket.resume(); // what it asks is thrown away; unread, its end would never be seen
      socket.write(`${JSON.stringify(refusalOf(objection))}\n`);
      endSoon(socket);
      return;
    }
    this.#connections.add(socket);
    socket.on('error', () => socket.destroy());
    let pending = '';
    let overdue: NodeJS.Timeout | undefined;
    socket.on('close', () => {
      this.#connections.delete(socket);
      clearTimeout(overdue);
    });
    socket.setEncoding('utf8');
    socket.on('data', (text: string) => {
      pending += text;
      for (let end = pending.indexOf('\n'); end >= 0; end = pending.indexOf('\n')) {
        const line = pending.slice(0, end);
        pending = pending.slice(end + 1);
        void this.#reply(socket, line);
        clearTimeout(overdue);
        overdue = undefined;
      }
      if (pending !== '') overdue ??= setTimeout(() => socket.destroy(), REQUEST_MS);
      if (pending.length > REQUEST_BYTES_MAX) socket.destroy();
    });
  }

  async #reply(socket: Socket, line: string): Promise<void> {
    const reply = await this.#answer(line);
    socket.write(`${JSON.stringify(reply)}\n`);
    if (socket.writableLength > UNREAD_BYTES_MAX) socket.destroy();
  }

  async #answer(line: string): Promise<object> {
    try {
      return { ok: true, result: await this.#run(parseRequest(line)) };
    } catch (error) {
      return refusalOf(error as Error);
    }
  }
}

/** A request whose shape is right; whether there is such a command is for whoever runs it to say. */
export interface ControlRequest {
  command: unknown;
  /** The VM that is meant; null: the only one. */
  vm: string | null;
  force: string | null;
  /** Of events: those that come after this one. */
  after: number;
}

function runOn(handler: ControlHandler, { command, vm, force }: ControlRequest): unknown {
  const known = CONTROL_COMMANDS.find((name) => name === command);
  if (known !== undefined && vm !== null) assertMeant(vm, handler.status().vm);
  switch (known) {
    case 'status':
      return handler.status();
    case 'take-overs':
      return handler.takeOvers();
    case 'failover':
      return handler.failover(force);
    case 'drill':
      return handler.drill();
    case 'stop':
      return handler.stop(force);
    case undefined:
      throw new ControlError(
        'unknown-command',
        `unknown command ${JSON.stringify(command)}; known are ${CONTROL_COMMANDS.join(', ')}`,
      );
  }
}

function assertMeant(vm: string, own: string): void {
  if (vm === own) return;
  throw new ControlError('unknown-vm', `no VM \`${vm}\` here: this is the agent of ${own}; nothing was done`);
}

function refusalOf(error: Error): object {
  const code = error instanceof ControlError ? error.code : 'internal';
  return { ok: false, error: { code, message: error.message } };
}

/** Whether the client ends its side, too, or not: it holds neither a descriptor nor this process. */
function endSoon(socket: Socket): void {
  socket.end();
  setTimeout(() => socket.destroy(), LINGER_MS).unref();
}

/** Node.js has no public way to it. */
function descriptorOf(socket: Socket): number {
  return (socket as unknown as { _handle?: { fd?: number } })._handle?.fd ?? -1;
}

function parseRequest(line: string): ControlRequest {
  let request: unknown;
  try {
    request = JSON.parse(line);
  } catch {
    throw new ControlError('malformed', 'the request is not JSON; send {"command":"status"} and a newline');
  }
  const fields = typeof request === 'object' && request !== null ? request : {};
  const { command, vm = null, force = null, after = 0 } = fields as Record<string, unknown>;
  if (force !== null && typeof force !== 'string')
    throw new ControlError('malformed', "force must be the VM's name");
  if (vm !== null && typeof vm !== 'string') throw new ControlError('malformed', "vm must be a VM's name");
  if (typeof after !== 'number') throw new ControlError('malformed', 'after must be the number of an event');
  return { command, vm, force, after };
}
