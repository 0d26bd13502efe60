/** `unreachable`: no endpoint answered. `refused`: etcd answered, and said no. `malformed`: what answered isn't etcd. */
export type EtcdErrorCode = 'unreachable' | 'refused' | 'malformed';

/** After one of a put nobody knows whether it happened, or still will. */
export class EtcdError extends Error {
  override readonly name = 'EtcdError';
  readonly code: EtcdErrorCode;
  /** gRPC's, of a refusal; null where there is none. */
  readonly grpc: number | null;

  constructor(code: EtcdErrorCode, message: string, grpc: number | null = null) {
    super(message);
    this.code = code;
    this.grpc = grpc;
  }
}
