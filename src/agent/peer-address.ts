import { createConnection } from 'node:net';
import type { Message } from '../protocol/messages.ts';
import { encodePreface } from '../protocol/preface.ts';
import { PeerLink } from './peer-link.ts';

export interface HostPort {
  host: string;
  port: number;
}

/** Parses HOST:PORT, [IPV6]:PORT or :PORT (every address). Throws RangeError that says what is wrong. */
export function parseHostPort(text: string, options: { portZero?: boolean } = {}): HostPort {
  const match = /^(?:\[([0-9a-fA-F:.%a-z]+)\]|([^:[\]]*)):(\d{1,5})$/.exec(text);
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

/** A host that swallows packets must not hold an attempt for the kernel's two minutes. */
const CONNECT_TIMEOUT_MS = 5000;

export interface PeerConnectEvents {
  onConnected(link: PeerLink): void;
  onMessage(message: Message): void;
  /** Couldn't be reached, or was lost later: once. */
  onLost(reason: string): void;
}

/** Opens the control connection to a secondary. Returns a function that gives the attempt up without a report. */
export function connectPeer(peer: HostPort, events: PeerConnectEvents): () => void {
  const socket = createConnection({ host: peer.host, port: peer.port, noDelay: true });
  const fail = (reason: string) => {
    clearTimeout(timer);
    socket.off('error', onError);
    socket.on('error', () => {}); // already reported below
    socket.destroy();
    events.onLost(`can't reach the standby at ${formatHostPort(peer)}: ${reason}`);
  };
  const onError = (error: Error) => fail(error.message);
  const timer = setTimeout(() => fail(`no answer within ${CONNECT_TIMEOUT_MS / 1000} s`), CONNECT_TIMEOUT_MS);
  socket.once('error', onError);
  socket.once('connect', () => {
    clearTimeout(timer);
    socket.off('error', onError);
    socket.write(encodePreface({ link: 'control' }));
    events.onConnected(new PeerLink(socket, { onMessage: events.onMessage, onLost: events.onLost }));
  });
  return () => {
    if (!socket.connecting) return;
    clearTimeout(timer);
    socket.off('error', onError);
    socket.on('error', () => {});
    socket.destroy();
  };
}
