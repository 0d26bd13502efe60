/** Why a domain couldn't be found, or can't be used as it is; the text says what to do. */
export class LibvirtError extends Error {
  override readonly name = 'LibvirtError';
}
