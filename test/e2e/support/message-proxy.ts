/** Stands between a primary and its secondary, sees each control message, and can act before and after it passes. Bulk bytes pass unseen. */
import { createConnection, createServer, type Server, type Socket } from 'node:net';
import { encodeMessage, MessageDecoder } from '../../../src/protocol/codec.ts';
import type { Message } from '../../../src/protocol/messages.ts';
import { PREFACE_BYTES } from '../../../src/protocol/preface.ts';

export type Side = 'primary' | 'secondary';

export interface ProxyHooks {
  /** false: the message, and everything behind it, never arrives. */
  before?(from: Side, message: Message): boolean | undefined;
  after?(from: Side, message: Message): void;
}

export class MessageProxy {
  hooks: ProxyHooks = {};
  /** What the primary has sent on bulk connections. */
  bulkBytes = 0;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #target: { host: string; port: number };

  private constructor(target: string) {
    const [host = '', port] = target.split(':');
    this.#target = { host, port: Number(port) };
    this.#server = createServer((socket) => this.#accept(socket));
  }

  /** `target` is HOST:PORT of the secondary. */
  static async open(target: string): Promise<MessageProxy> {
    const proxy = new MessageProxy(target);
    await new Promise<void>((resolve, reject) => {
      proxy.#server.once('error', reject);
      proxy.#server.listen(0, '127.0.0.1', resolve);
    });
    return proxy;
  }

  get address(): string {
    const address = this.#server.address();
    if (typeof address !== 'object' || !address) throw new Error('the proxy is closed');
    return `127.0.0.1:${address.port}`;
  }

  /** Cuts every connection, as a broken link that resets does. */
  cut(): void {
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  destroy(): void {
    this.#server.close();
    this.cut();
  }

  #accept(primary: Socket): void {
    const secondary = createConnection({ ...this.#target, noDelay: true });
    for (const socket of [primary, secondary]) {
      this.#sockets.add(socket);
      socket.setNoDelay(true);
      socket.on('error', () => socket.destroy()); // the other side learns of it by the close below
    }
    primary.on('close', () => secondary.destroy());
    secondary.on('close', () => primary.destroy());
    let preface = Buffer.alloc(0);
    const readPreface = (chunk: Buffer) => {
      preface = Buffer.concat([preface, chunk]);
      if (preface.length < PREFACE_BYTES) return;
      primary.off('data', readPreface);
      secondary.write(preface.subarray(0, PREFACE_BYTES));
      const rest = preface.subarray(PREFACE_BYTES);
      if (preface.toString('latin1', 0, 8) === 'COLOCTL1') this.#relayMessages(primary, secondary, rest);
      else this.#relayBulk(primary, secondary, rest);
    };
    primary.on('data', readPreface);
  }

  #relayMessages(primary: Socket, secondary: Socket, rest: Buffer): void {
    const fromPrimary = this.#pump('primary', secondary);
    const fromSecondary = this.#pump('secondary', primary);
    primary.on('data', fromPrimary);
    secondary.on('data', fromSecondary);
    if (rest.length > 0) fromPrimary(rest);
  }

  #relayBulk(primary: Socket, secondary: Socket, rest: Buffer): void {
    this.bulkBytes += rest.length;
    secondary.write(rest);
    primary.on('data', (chunk) => {
      this.bulkBytes += chunk.length;
    });
    primary.pipe(secondary);
    secondary.pipe(primary);
  }

  #pump(from: Side, to: Socket): (chunk: Buffer) => void {
    const decoder = new MessageDecoder();
    let silent = false;
    return (chunk) => {
      for (const message of decoder.push(chunk)) {
        silent ||= this.hooks.before?.(from, message) === false;
        if (silent) continue;
        to.write(encodeMessage(message));
        this.hooks.after?.(from, message);
      }
    };
  }
}
