/** Links into the page, and the cookie that remembers who has used one. */
import { formatHttpAddress, type HttpAddress } from '../http/address.ts';

/** What to open. Of every address, the loopback one; of a unix socket, what comes after the address that it is forwarded to. */
export function linkTo(address: HttpAddress, token: string): string {
  const path = `/enter?token=${token}`;
  if ('path' in address) return `${formatHttpAddress(address)} ${path}`;
  const host = { '::': '127.0.0.1', '0.0.0.0': '127.0.0.1' }[address.host] ?? address.host;
  return `http://${formatHttpAddress({ ...address, host })}${path}`;
}

/** Cookies belong to a host, whatever the port: two daemons that are looked at by way of one address must not log each other out. */
export function cookieName(address: HttpAddress): string {
  const place = 'path' in address ? Buffer.from(address.path).toString('base64url') : address.port;
  return `colo-agent-${place}`;
}

/** Of the request's header; null: it isn't there. */
export function cookieOf(header: string | undefined, name: string): string | null {
  for (const pair of (header ?? '').split(';')) {
    const [key = '', value] = pair.split('=', 2);
    if (key.trim() === name && value !== undefined) return value.trim();
  }
  return null;
}
