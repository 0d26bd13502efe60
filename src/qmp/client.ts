/**
 * A QMP client: one connection to one QEMU (docs/interop/qmp-spec in QEMU's tree).
 *
 * Commands issued in the same tick leave in one write and are in flight together; QEMU carries them out and answers in order. Replies and
 * events are delivered in the order in which QEMU sent them: code that awaits the promise of `execute` directly runs before the handler of an
 * event that followed the reply, and after the handler of one that preceded it.
 *
 * Errors only ever come out of the promises (QmpError): when the connection is lost, or QEMU sends what is not QMP, every command in flight is
 * rejected, the handlers given to `onClosed` run once, and later commands are rejected at once.
 */
import { Socket } from 'node:net';
import { type NativeBinding, type NativeError, native as nativeBinding } from '../native/binding.ts';
import type {
  Arguments,
  CommandName,
  EventName,
  Nothing,
  QemuVersion,
  QmpEvent,
  Returns,
} from './commands.ts';
import { QmpError } from './error.ts';
import { type Json, stringifyJson } from './json.ts';
import { LineSplitter } from './lines.ts';
import {
  type Greeting,
  malformed,
  parseGreeting,
  parseServerMessage,
  type ServerMessage,
} from './messages.ts';

export interface ConnectOptions {
  /** For greeting and capabilities together. */
  timeoutMs?: number;
  lineBytesMax?: number;
  native?: Pick<NativeBinding, 'connectUnix' | 'peerCredentials' | 'sendWithFds'>;
}

const HANDSHAKE_TIMEOUT_MS = 5000;

type ArgumentsOf<Name extends CommandName> =
  Nothing extends Arguments<Name>
    ? [args?: Arguments<Name>, fds?: readonly number[]]
    : [args: Arguments<Name>, fds?: readonly number[]];

/** A command for executeAll: its name and, where it takes any, its arguments. */
export type Call = { [Name in CommandName]: readonly [Name, ...ArgumentsOf<Name>] }[CommandName];
type ReturnsOf<Calls extends readonly Call[]> = { [Index in keyof Calls]: Returns<Calls[Index][0]> };

interface Pending {
  command: string;
  resolve(value: Json): void;
  reject(error: QmpError): void;
}

interface Outgoing {
  id: number;
  text: string;
  fds: readonly number[];
}

type EventHandler = (event: QmpEvent) => void;

export class QmpClient {
  /** The process that listens on the socket: QEMU. */
  readonly peer: { pid: number; uid: number; gid: number };
  readonly #path: string;
  readonly #native: Pick<NativeBinding, 'sendWithFds'>;
  readonly #fd: number;
  readonly #socket: Socket;
  readonly #splitter: LineSplitter;
  readonly #pending = new Map<number, Pending>();
  readonly #handlers = new Map<string, Set<EventHandler>>();
  readonly #closedHandlers = new Set<(reason: string) => void>();
  #lastId = 0;
  /** The command with descriptors that has no answer yet. */
  #withFds: number | null = null;
  #outgoing: Outgoing[] = [];
  #flushScheduled = false;
  /** Who waits for the greeting, until it has come. */
  #greeting: { resolve(greeting: Greeting): void; reject(error: QmpError): void } | null = null;
  #closed: QmpError | null = null;
  #version: QemuVersion = { major: 0, minor: 0, micro: 0 };

  /**
   * Connects to the monitor at `path` and negotiates. Throws QmpError ConnectFailed that says what is wrong: no such socket, nobody
   * listening, not a QMP monitor, or one that another client holds (QEMU then accepts, but doesn't answer).
   */
  static async connect(path: string, options: ConnectOptions = {}): Promise<QmpClient> {
    const client = new QmpClient(path, options);
    const timer = setTimeout(
      () => client.#fail(noAnswer(path, client.#greeting !== null)),
      options.timeoutMs ?? HANDSHAKE_TIMEOUT_MS,
    );
    try {
      await client.#negotiate();
    } catch (error) {
      client.close();
      throw new QmpError('ConnectFailed', (error as QmpError).desc, '');
    } finally {
      clearTimeout(timer);
    }
    return client;
  }

  private constructor(path: string, options: ConnectOptions) {
    const native = options.native ?? nativeBinding;
    try {
      this.#fd = native.connectUnix(path);
    } catch (error) {
      throw cannotConnect(path, error as NativeError);
    }
    this.#path = path;
    this.#native = native;
    this.peer = native.peerCredentials(this.#fd);
    this.#splitter = new LineSplitter(options.lineBytesMax);
    this.#socket = new Socket({ fd: this.#fd, readable: true, writable: true });
    this.#socket.on('data', (chunk: Buffer) => this.#receive(chunk));
    this.#socket.on('error', (error) => this.#fail(this.#lost(error.message)));
    this.#socket.on('close', () => this.#fail(this.#lost('QEMU closed the connection')));
  }

  /** QEMU's version as its greeting said it. */
  get version(): QemuVersion {
    return this.#version;
  }

  /** The connection itself, for a process that is to speak on when this one has died. */
  get fd(): number {
    return this.#fd;
  }

  get closed(): boolean {
    return this.#closed !== null;
  }

  /**
   * Sends one command, with descriptors attached if it takes one (add-fd, getfd); the caller keeps its own copies and must keep them open
   * until the reply is here. Rejects with QmpError.
   */
  execute<Name extends CommandName>(name: Name, ...[args, fds]: ArgumentsOf<Name>): Promise<Returns<Name>> {
    // Not an async function: the promise itself is settled as the reply is delivered, or the order that the class promises would be lost.
    return new Promise<Json>((resolve, reject) =>
      this.#issue(name, args, fds ?? [], { command: name, resolve, reject }),
    ) as Promise<Returns<Name>>;
  }

  /** Sends several commands in one write. Rejects with the first error; the commands behind it are carried out all the same. */
  executeAll<const Calls extends readonly Call[]>(calls: Calls): Promise<ReturnsOf<Calls>> {
    const replies = calls.map(([name, args, fds]) => {
      return this.execute(name as 'query-status', args as Nothing | undefined, fds);
    });
    return Promise.all(replies) as unknown as Promise<ReturnsOf<Calls>>;
  }

  /** Calls `handler` for every event `name` from now on; returns what ends that. A handler must not throw. */
  onEvent<Name extends EventName>(name: Name, handler: (event: QmpEvent<Name>) => void): () => void {
    const handlers = this.#handlers.get(name) ?? new Set();
    this.#handlers.set(name, handlers);
    handlers.add(handler as unknown as EventHandler);
    return () => handlers.delete(handler as unknown as EventHandler);
  }

  /** Calls `handler` once when the connection ends, by whichever side, or now if it has ended; returns what takes that back. */
  onClosed(handler: (reason: string) => void): () => void {
    const closed = this.#closed;
    if (closed) queueMicrotask(() => handler(closed.desc));
    else this.#closedHandlers.add(handler);
    return () => this.#closedHandlers.delete(handler);
  }

  /** Ends the connection; commands in flight are rejected. Idempotent. */
  close(): void {
    this.#fail(this.#lost('closed by colo-agent'));
  }

  async #negotiate(): Promise<void> {
    const { version, capabilities } = await new Promise<Greeting>((resolve, reject) => {
      this.#greeting = { resolve, reject };
    });
    this.#version = version;
    // QEMU reads a monitor byte by byte, some 7 us each. Without "oob" it doesn't even begin to read a command before it has answered the one before
    // (monitor/qmp.c, handle_qmp_command): a save issued together with its `stop` would be read while the guest stands.
    await this.execute('qmp_capabilities', capabilities.includes('oob') ? { enable: ['oob'] } : {});
  }

  #issue(name: string, args: object | undefined, fds: readonly number[], pending: Pending): void {
    if (this.#closed) {
      pending.reject(new QmpError(this.#closed.class, this.#closed.desc, name));
      return;
    }
    const id = this.#freeId();
    const text = `${stringifyJson({ execute: name, arguments: args, id })}\n`;
    this.#pending.set(id, pending);
    this.#outgoing.push({ id, text, fds });
    if (this.#flushScheduled) return;
    this.#flushScheduled = true;
    queueMicrotask(() => {
      this.#flushScheduled = false;
      this.#flush();
    });
  }

  /** Short, since QEMU reads every byte by itself; and not soon used again, so that a reply too many is noticed. */
  #freeId(): number {
    const idMax = Math.max(99, 2 * this.#pending.size);
    do this.#lastId = (this.#lastId % idMax) + 1;
    while (this.#pending.has(this.#lastId));
    return this.#lastId;
  }

  /**
   * Neighbours without descriptors leave in one write. A descriptor goes past Node's socket, so it waits until nothing is queued in there; and for the answer to
   * the one before, since QEMU, which reads ahead, keeps only those that came last.
   */
  #flush(): void {
    while (!this.#closed && this.#outgoing.length > 0) {
      const withFds = this.#outgoing.findIndex((message) => message.fds.length > 0);
      if (withFds === 0) {
        if (this.#socket.writableLength > 0 || this.#withFds !== null) return;
        this.#sendWithFds(this.#outgoing.shift() as Outgoing);
        continue;
      }
      const plain = this.#outgoing.splice(0, withFds < 0 ? this.#outgoing.length : withFds);
      this.#socket.write(plain.map((message) => message.text).join(''), () => this.#flush());
    }
  }

  #sendWithFds({ id, text, fds }: Outgoing): void {
    this.#withFds = id;
    try {
      this.#native.sendWithFds(this.#fd, Buffer.from(text), [...fds]);
    } catch (error) {
      this.#fail(this.#lost((error as NativeError).message));
    }
  }

  #receive(chunk: Uint8Array): void {
    try {
      for (const line of this.#splitter.push(chunk)) {
        if (this.#closed) return;
        this.#deliver(line);
      }
    } catch (error) {
      this.#fail(
        new QmpError('ProtocolError', `${this.#path}: malformed QMP: ${(error as Error).message}`, ''),
      );
    }
  }

  #deliver(line: string): void {
    if (this.#greeting) {
      const version = parseGreeting(line);
      if (version === 'event') return;
      if (version) this.#greeting.resolve(version);
      else this.#greeting.reject(notQmp(this.#path));
      this.#greeting = null;
      return;
    }
    const message = parseServerMessage(line);
    if (message.kind === 'event') this.#deliverEvent(message.event);
    else this.#deliverReply(message, line);
  }

  #deliverReply(message: Exclude<ServerMessage, { kind: 'event' }>, line: string): void {
    const pending = typeof message.id === 'number' ? this.#pending.get(message.id) : undefined;
    if (!pending) throw malformed('a reply to no command of ours', line);
    this.#pending.delete(message.id as number);
    if (message.id === this.#withFds) {
      this.#withFds = null;
      this.#flush();
    }
    if (message.kind === 'return') pending.resolve(message.value);
    else pending.reject(new QmpError(message.errorClass, message.desc, pending.command));
  }

  #deliverEvent(event: QmpEvent): void {
    // Behind the continuations of the replies that came before it.
    queueMicrotask(() => {
      for (const handler of this.#handlers.get(event.event) ?? []) handler(event);
    });
  }

  #lost(reason: string): QmpError {
    return new QmpError('ConnectionLost', `${this.#path}: ${reason}`, '');
  }

  #fail(error: QmpError): void {
    if (this.#closed) return;
    this.#closed = error;
    this.#socket.destroy();
    this.#outgoing = [];
    const pending = [...this.#pending.values()];
    this.#pending.clear();
    this.#greeting?.reject(error);
    this.#greeting = null;
    for (const { command, reject } of pending) reject(new QmpError(error.class, error.desc, command));
    queueMicrotask(() => {
      for (const handler of this.#closedHandlers) handler(error.desc);
    });
  }
}

function notQmp(path: string): QmpError {
  return new QmpError(
    'ConnectFailed',
    `${path}: not a QMP monitor. Give the socket of -qmp unix:PATH,server=on,wait=off`,
    '',
  );
}

function noAnswer(path: string, beforeGreeting: boolean): QmpError {
  const desc = beforeGreeting
    ? `${path}: connected, but QEMU doesn't greet. Another client is connected to this monitor (QEMU serves one at a time: give colo-agent a ` +
      '-qmp socket of its own), or QEMU hangs'
    : `${path}: QEMU greeted, but doesn't answer`;
  return new QmpError('ConnectFailed', desc, '');
}

function cannotConnect(path: string, error: NativeError): QmpError {
  return new QmpError('ConnectFailed', `cannot connect to the QMP socket ${path}: ${error.message}`, '');
}
