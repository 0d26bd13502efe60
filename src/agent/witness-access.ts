/** Whether this host may write at the witness: found out when an agent starts, not in the moment in which a VM depends on it. */

import { ABSENT } from '../witness/etcd.ts';
import type { EtcdError } from '../witness/etcd-error.ts';
import type { WitnessChoice } from './arbitration.ts';
import type { Log } from './log.ts';

export class WitnessAccessError extends Error {
  override readonly name = 'WitnessAccessError';
}

/** gRPC's codes for a user that isn't known or whose password is wrong, that may not do this, and that must say who it is. */
const DENIALS: readonly (number | null)[] = [3, 7, 16];

/**
 * Writes a key of this host's own under the prefix. Throws WitnessAccessError when etcd says that it may not. An etcd that doesn't answer, or that can't write for now, is no
 * error: that may change before it is needed.
 */
export async function assertWitnessAccess(witness: WitnessChoice, log: Log): Promise<void> {
  if (witness.kind !== 'etcd') return;
  const reason = await tryWitness(witness);
  if (reason !== null) log.warn("the witness doesn't answer at the start", { reason });
}

/** The same; resolves with why it doesn't answer for now, or null. */
export async function tryWitness({
  client,
  key,
  nodeKey,
}: WitnessChoice & { kind: 'etcd' }): Promise<string | null> {
  try {
    await client.read(key);
    const found = await client.read(nodeKey);
    await client.putIf(
      nodeKey,
      found?.revision ?? ABSENT,
      JSON.stringify({ format: 1, startedAt: new Date() }),
    );
    return null;
  } catch (error) {
    const { grpc, message } = error as EtcdError;
    if (!DENIALS.includes(grpc ?? null)) return message;
    const prefix = key.slice(0, key.lastIndexOf('/vm/') + 1);
    throw new WitnessAccessError(
      `${message}: this host has to read and write under ${prefix} (etcdctl role grant-permission ROLE --prefix=true readwrite ${prefix}); ` +
        'check --witness-user, --witness-password-file, --witness-cert and --witness-prefix',
    );
  }
}
