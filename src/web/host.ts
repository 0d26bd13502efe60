/** Which names this server has. A page of somebody else's, whose name has been made to mean our address (DNS rebinding), asks for that name: it gets nothing. */
import { isIP } from 'node:net';
import { hostname } from 'node:os';

/** `host`: of the request's header. An address is no name that anybody could have bent; of names there are `localhost` and this host's own. */
export function isOwnHost(host: string | undefined, ownName = hostname()): boolean {
  const match = /^(?:\[([0-9a-f:.]+)\]|([^:[\]]+))(?::\d{1,5})?$/i.exec(host ?? '');
  const name = (match?.[1] ?? match?.[2] ?? '').toLowerCase();
  return isIP(name) !== 0 || name === 'localhost' || (name !== '' && name === ownName.toLowerCase());
}
