import type { Socket } from 'node:net';
import { encodeMessage, MessageDecoder } from '../protocol/codec.ts';
import type { Message } from '../protocol/messages.ts';

export interface PeerLinkEvents {
  onMessage(message: Message): void;
  /** Once: closed by either side, or what came was not the protocol. */
  onLost(reason: string): void;
}

/** How long a closing link may take to get its last message (ERROR or BYE) out. */
const LINGER_MS = 1000;

/** The first byte of a TLS alert, by which an agent answers one that speaks plain text. */
const TLS_ALERT = 0x15;

/** The control connection between two agents. Takes over a connected socket whose preface has been sent or read. */
export class PeerLink {
  readonly #socket: Socket;
  readonly #decoder = new MessageDecoder();
  readonly #events: PeerLinkEvents;
  #lost = false;
  #heard = false;

  constructor(socket: Socket, events: PeerLinkEvents) {
    this.#socket = socket;
    this.#events = events;
    socket.setNoDelay(true);
    socket.on('data', (chunk: Uint8Array) => this.#receive(chunk));
    socket.on('error', (error) => this.#lose(error.message));
    socket.on('end', () => this.#lose('the peer closed the connection'));
    socket.on('close', () => this.#lose('the connection was closed'));
  }

  send(message: Message): void {
    if (!this.#lost) this.#socket.write(encodeMessage(message));
  }

  /** Closes from our side: what was sent still goes out, nothing more is reported. */
  close(): void {
    this.#lost = true;
    this.#socket.end();
    setTimeout(() => this.#socket.destroy(), LINGER_MS).unref();
  }

  #receive(chunk: Uint8Array): void {
    if (this.#lost) return;
    if (!this.#heard && chunk[0] === TLS_ALERT) {
      this.#lose('the peer speaks TLS, and this agent was started with --insecure: start both the same way');
      return;
    }
    this.#heard = true;
    let messages: Message[];
    try {
      messages = this.#decoder.push(chunk);
    } catch (error) {
      // Whatever a peer sends ends the session, never the process.
      this.#lose(`not the protocol: ${(error as Error).message}`);
      return;
    }
    for (const message of messages) {
      if (!this.#lost) this.#events.onMessage(message);
    }
  }

  #lose(reason: string): void {
    if (this.#lost) return;
    this.#lost = true;
    this.#socket.destroy();
    this.#events.onLost(reason);
  }
}
