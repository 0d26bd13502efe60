/** A TCP relay in front of an etcd, for what a network does to requests and answers. */
import { createConnection, createServer, type Server, type Socket } from 'node:net';

/** Listens on a free port of the loopback; gives its URL. */
export async function listening(server: Server): Promise<string> {
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(0, '127.0.0.1', resolve);
  });
  const address = server.address();
  return `http://127.0.0.1:${typeof address === 'object' && address ? address.port : 0}`;
}

/** Passes everything on, but for answers when told to lose them. */
export class LossyRelay {
  endpoint = '';
  connections = 0;
  losesAnswers = false;
  /** Whether such an answer's request is passed on all the same: told for each, by what it holds. */
  losesAnswersTo: (request: string) => boolean = () => false;
  /** The connection ends without a word when the next request comes. */
  cutAtNextRequest = false;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(target: URL) {
    this.#server = createServer((client) => this.#relay(client, target));
  }

  static async open(target: string): Promise<LossyRelay> {
    const relay = new LossyRelay(new URL(target));
    relay.endpoint = await listening(relay.#server);
    return relay;
  }

  destroy(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  #relay(client: Socket, target: URL): void {
    this.connections++;
    const server = createConnection({ host: target.hostname, port: Number(target.port) });
    for (const socket of [client, server]) {
      this.#sockets.add(socket);
      socket.on('error', () => socket.destroy());
    }
    let loses = false;
    client.on('data', (chunk: Buffer) => {
      loses = this.losesAnswersTo(chunk.toString('latin1'));
      if (this.cutAtNextRequest) {
        this.cutAtNextRequest = false;
        client.resetAndDestroy();
      } else {
        server.write(chunk);
      }
    });
    server.on('data', (chunk: Buffer) => {
      if (this.losesAnswers || loses) client.destroy();
      else client.write(chunk);
    });
    client.on('close', () => server.destroy());
    server.on('close', () => client.destroy());
  }
}
