/** One end of the conversation between two doctors: JSON lines, and runs of bytes that count alone. */
import type { Socket } from 'node:net';

/** A description of a VM is the longest. */
const LINE_BYTES_MAX = 1 << 20;

export interface LineEvents {
  onLine(value: unknown): void;
  /** What skip() asked for has come. */
  onSkipped(): void;
  /** Once. */
  onEnd(reason: string): void;
}

export class Lines {
  readonly #socket: Socket;
  readonly #events: LineEvents;
  #unread: Buffer[] = [];
  #unreadBytes = 0;
  #skipBytes = 0;
  #ended = false;

  /** `idleMs`: silence for so long ends it. */
  constructor(socket: Socket, idleMs: number, events: LineEvents) {
    this.#socket = socket;
    this.#events = events;
    socket.setTimeout(idleMs, () => this.#end(`nothing came for ${idleMs / 1000} s`));
    socket.on('data', (chunk: Buffer) => this.#receive(chunk));
    socket.on('error', (error) => this.#end(error.message));
    socket.on('close', () => this.#end('the connection was closed'));
  }

  send(value: object): void {
    this.#socket.write(`${JSON.stringify(value)}\n`);
  }

  /** The next `bytes` are no line. */
  skip(bytes: number): void {
    this.#skipBytes = bytes;
  }

  close(): void {
    this.#end('closed here');
  }

  #receive(chunk: Buffer): void {
    let rest = chunk;
    while (rest.length > 0 && !this.#ended) rest = this.#skipBytes > 0 ? this.#count(rest) : this.#read(rest);
  }

  #count(chunk: Buffer): Buffer {
    const counted = Math.min(chunk.length, this.#skipBytes);
    this.#skipBytes -= counted;
    if (this.#skipBytes === 0) this.#events.onSkipped();
    return chunk.subarray(counted);
  }

  #read(chunk: Buffer): Buffer {
    const newline = chunk.indexOf(0x0a);
    const part = newline < 0 ? chunk : chunk.subarray(0, newline);
    this.#unread.push(part);
    this.#unreadBytes += part.length;
    if (this.#unreadBytes > LINE_BYTES_MAX) this.#end('a line of more than 1 MiB came');
    else if (newline >= 0) this.#deliver();
    return newline < 0 ? Buffer.alloc(0) : chunk.subarray(newline + 1);
  }

  #deliver(): void {
    const text = Buffer.concat(this.#unread).toString();
    this.#unread = [];
    this.#unreadBytes = 0;
    try {
      this.#events.onLine(JSON.parse(text));
    } catch {
      this.#end('what came is no line of JSON');
    }
  }

  #end(reason: string): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#socket.destroy();
    this.#events.onEnd(reason);
  }
}
