/** Why a domain can't be used as it is; the text says what to do. */
export class LibvirtError extends Error {
  override readonly name: string = 'LibvirtError';
}

/** libvirt doesn't answer, or has no such domain, or it doesn't run: it may later, with nothing done here. */
export class DomainUnavailableError extends LibvirtError {
  override readonly name = 'DomainUnavailableError';
}
