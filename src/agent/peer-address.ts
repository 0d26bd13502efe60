import { lookup } from 'node:dns/promises';
import { Socket } from 'node:net';
import { native, type PeerConnection, type TlsCredentials } from '../native/binding.ts';
import type { Message } from '../protocol/messages.ts';
import { encodePreface } from '../protocol/preface.ts';
import { type LinkStatus, linkStatus } from './link-security.ts';
import { PeerLink } from './peer-link.ts';

export interface HostPort {
  host: string;
  port: number;
}

/** Parses HOST:PORT, [IPV6]:PORT or :PORT (every address). Throws RangeError that says what is wrong. */
export function parseHostPort(text: string, options: { portZero?: boolean } = {}): HostPort {
  const match = /^(?:\[([0-9a-fA-F:.]+(?:%[^\s[\]]+)?)\]|([^:[\]]*)):(\d{1,5})$/.exec(text);
  if (!match)
    throw new RangeError(`'${text}' is not HOST:PORT (an IPv6 address goes in brackets: [::1]:7000)`);
  const port = Number(match[3]);
  if (port > 65535 || (port === 0 && !options.portZero))
    throw new RangeError(`port ${match[3]} in '${text}' is out of range 1-65535`);
  const host = match[1] ?? match[2] ?? '';
  if (host === '' && !options.portZero) throw new RangeError(`'${text}' names no host`);
  return { host: host === '' ? '::' : host, port };
}

export function formatHostPort({ host, port }: HostPort): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

/** The host in the acceptor's name for a peer, which may be no option's text: fe80::1%br-colo, or "unknown". Never throws. */
export function hostOfPeer(peer: string): string {
  return peer.replace(/:\d+$/, '').replace(/^\[(.*)\]$/, '$1');
}

/** A host that swallows packets must not hold an attempt for the kernel's two minutes. TLS gets as long again. */
const CONNECT_TIMEOUT_MS = 5000;

export interface PeerConnectEvents {
  /** `address`: the one of the name's that answered. The session's other connections go there, since native code that resolves a name can't be given up. */
  onConnected(link: PeerLink, security: LinkStatus, address: HostPort): void;
  onMessage(message: Message): void;
  /** Couldn't be reached, or was lost later: once. */
  onLost(reason: string): void;
}

/**
 * Opens the control connection to a secondary; without `credentials`, in plain text. Returns a function that gives the attempt up
 * without a report.
 */
export function connectPeer(
  peer: HostPort,
  credentials: TlsCredentials | null,
  events: PeerConnectEvents,
): () => void {
  const attempt = new ConnectAttempt(peer, credentials);
  attempt.run().then(
    ({ connection, address }) => {
      if (attempt.givenUp) return connection.close();
      let security: LinkStatus;
      let socket: Socket;
      try {
        security = linkStatus(connection.security());
        socket = new Socket({ fd: connection.openSocket(), readable: true, writable: true });
      } catch (error) {
        // INVARIANT 7: a want of descriptors or threads costs the session, not the agent.
        connection.close();
        return events.onLost(
          `the connection to ${formatHostPort(peer)} can't be used: ${(error as Error).message}`,
        );
      }
      socket.write(encodePreface({ link: 'control' }));
      events.onConnected(
        new PeerLink(socket, { onMessage: events.onMessage, onLost: events.onLost }),
        security,
        { host: address, port: peer.port },
      );
    },
    (error: Error) => {
      if (!attempt.givenUp) events.onLost(unreachable(peer, error));
    },
  );
  return () => attempt.giveUp();
}

/**
 * As connectPeer, as far as the peer accepts us: nothing has been said yet, and the connection is the caller's. Rejects with the reason that connectPeer
 * would tell.
 */
export async function reachPeer(
  peer: HostPort,
  credentials: TlsCredentials | null,
): Promise<{ connection: PeerConnection; address: string }> {
  try {
    return await new ConnectAttempt(peer, credentials).run();
  } catch (error) {
    throw new Error(unreachable(peer, error as Error));
  }
}

function unreachable(peer: HostPort, { message }: Error): string {
  return `can't reach the standby at ${formatHostPort(peer)}: ${message}`;
}

class ConnectAttempt {
  givenUp = false;
  readonly #peer: HostPort;
  readonly #credentials: TlsCredentials | null;
  #connection: PeerConnection | null = null;

  constructor(peer: HostPort, credentials: TlsCredentials | null) {
    this.#peer = peer;
    this.#credentials = credentials;
  }

  /** Tries the name's addresses in turn. Rejects with the last one's reason. */
  async run(): Promise<{ connection: PeerConnection; address: string }> {
    // Here and not in native code, where a name that nobody answers for would hold a thread.
    const addresses = await lookup(this.#peer.host, { all: true });
    let failure = new Error(`the name ${this.#peer.host} has no address`);
    for (const { address } of addresses) {
      if (this.givenUp) break;
      const connection = new native.PeerConnection();
      this.#connection = connection;
      try {
        await connection.connect(address, this.#peer.port, CONNECT_TIMEOUT_MS, this.#credentials);
        this.#connection = null;
        return { connection, address };
      } catch (error) {
        connection.close();
        failure = error as Error;
      }
    }
    throw failure;
  }

  giveUp(): void {
    this.givenUp = true;
    this.#connection?.close();
  }
}
