/** What the protocol's parts throw. */

export type ProtocolErrorCode =
  | 'bad-magic'
  | 'bad-version'
  | 'bad-type'
  | 'bad-generation'
  | 'bad-epoch'
  | 'bad-length'
  | 'bad-payload'
  | 'bad-preface';

/** Bytes from a peer that this protocol doesn't allow. `code` is stable; the message says which field was wrong and how. */
export class ProtocolError extends Error {
  override readonly name = 'ProtocolError';
  readonly code: ProtocolErrorCode;

  constructor(code: ProtocolErrorCode, message: string) {
    super(message);
    this.code = code;
  }
}

/**
 * The shell did what the machine can't have asked for: a programming error, never a peer's doing. Going on could break an invariant, and an
 * agent that ends fails closed.
 */
export function invalidTransition(state: string, event: string): never {
  throw new Error(`invalid transition [${state} -> ${event}]`);
}
