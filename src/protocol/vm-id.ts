import { createHash } from 'node:crypto';

/** The VM id on the wire: the first 16 bytes of SHA-256 over the VM's name in UTF-8, as 32 hex digits. */
export function vmIdOf(name: string): string {
  return createHash('sha256').update(name, 'utf8').digest('hex').slice(0, 32);
}
