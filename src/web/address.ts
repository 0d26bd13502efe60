import type { HttpAddress } from '../http/address.ts';

/** Where the page is served when no address is said. */
export const WEB_ADDRESS: HttpAddress = { host: '127.0.0.1', port: 7780 };

/** Whether others than this host reach it: what goes there is plain HTTP. */
export function isForOthers(address: HttpAddress): boolean {
  if ('path' in address) return false;
  return !/^(127\.\d+\.\d+\.\d+|::1|localhost)$/.test(address.host);
}
