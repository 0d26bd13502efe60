/**
 * `colo-agent doctor --listen`: answers the other host's doctor, over connections that are secured as the agents' are. Behind the preface `COLODOC1`, a line of
 * JSON for each of its questions:
 *
 *     (on connecting)      {"portrait":{...},"mtu":1500}
 *     {"ping":7}           {"pong":7,"clockMs":1790000000000.1}
 *     {"take":1048576}     and so many bytes   {"took":1048576}
 */
import { Socket } from 'node:net';
import { type HostPort, hostOfPeer } from '../agent/peer-address.ts';
import { type Acceptor, native, type PeerConnection, type TlsCredentials } from '../native/binding.ts';
import { Lines } from './lines.ts';
import { mtuTowards, type Portrait } from './portrait.ts';

const CONNECTIONS_MAX = 4;
const IDLE_MS = 30_000;
export const TAKE_BYTES_MAX = 1 << 30;

export class Reception {
  readonly #acceptor: Acceptor;
  readonly #portrait: Portrait;
  readonly #open = new Set<Lines>();
  /** The acceptor's thread doesn't keep this process from ending. */
  readonly #staying: NodeJS.Timeout;

  /** Throws NativeError ERR_COLO_LISTEN. */
  constructor({ host, port }: HostPort, credentials: TlsCredentials | null, portrait: Portrait) {
    this.#portrait = portrait;
    this.#acceptor = new native.Acceptor({
      host,
      port,
      credentials,
      onAccepted: (link, connection, _preface, peer) => {
        if (link === 'doctor' && this.#open.size < CONNECTIONS_MAX) void this.#serve(connection, peer);
        else connection.close();
      },
      onRefused: () => {}, // the one who is refused is told why
    });
    this.#staying = setInterval(() => {}, 1 << 30);
  }

  get port(): number {
    return this.#acceptor.port;
  }

  close(): void {
    clearInterval(this.#staying);
    this.#acceptor.close();
    for (const lines of this.#open) lines.close();
  }

  async #serve(connection: PeerConnection, peer: string): Promise<void> {
    let socket: Socket;
    try {
      socket = new Socket({ fd: connection.openSocket(), readable: true, writable: true });
    } catch {
      return connection.close(); // a want of descriptors: it may ask again
    }
    let taking = 0;
    const lines: Lines = new Lines(socket, IDLE_MS, {
      onLine: (question) => {
        taking = answer(lines, question);
      },
      onSkipped: () => lines.send({ took: taking }),
      onEnd: () => this.#open.delete(lines),
    });
    this.#open.add(lines);
    lines.send({ portrait: this.#portrait, mtu: await mtuTowards(hostOfPeer(peer)) });
  }
}

/** Returns how many bytes are to be taken now. */
function answer(lines: Lines, question: unknown): number {
  const { ping, take } = (question ?? {}) as { ping?: unknown; take?: unknown };
  if (typeof ping === 'number') {
    lines.send({ pong: ping, clockMs: Date.now() });
    return 0;
  }
  const fits = Number.isSafeInteger(take) && (take as number) > 0 && (take as number) <= TAKE_BYTES_MAX;
  if (!fits) {
    lines.close();
    return 0;
  }
  lines.skip(take as number);
  return take as number;
}
