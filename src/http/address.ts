import { formatHostPort, type HostPort, parseHostPort } from '../agent/peer-address.ts';

/** Where a page, or figures, are served. */
export type HttpAddress = HostPort | { path: string };

/** Parses PORT (on 127.0.0.1), HOST:PORT, :PORT (every address) or unix:PATH. Throws RangeError that says what is wrong. */
export function parseHttpAddress(text: string): HttpAddress {
  if (text.startsWith('unix:')) {
    const path = text.slice('unix:'.length);
    // The kernel takes 107, and while the socket is made its name is longer by a process id.
    if (path === '' || Buffer.byteLength(path) > 99)
      throw new RangeError(`the path in '${text}' must have 1 to 99 bytes`);
    return { path };
  }
  return parseHostPort(/^\d+$/.test(text) ? `127.0.0.1:${text}` : text, { portZero: true });
}

export function formatHttpAddress(address: HttpAddress): string {
  return 'path' in address ? `unix:${address.path}` : formatHostPort(address);
}
