import type { Status } from '../agent/status.ts';
import { MetricsServer } from '../metrics/server.ts';
import type { SharedOptions } from './shared-options.ts';
import { version } from './version.ts';

/** Told whose status is served, as soon as there is one. */
export type MetricsShown = (status: () => Status) => void;

/** Serves metrics, if they are wanted, while `run` runs: an address that can't be had is found out before the VM is touched. Throws HttpListenError. */
export async function withMetrics(
  { vm, metrics: address }: SharedOptions,
  run: (shown: MetricsShown) => Promise<void>,
): Promise<void> {
  if (address === undefined) return run(() => {});
  let status: (() => Status) | null = null;
  const readings = () =>
    new Map([[vm, status ? { status: status() } : { failure: 'the agent is not attached to the VM yet' }]]);
  const server = await MetricsServer.listen({ address, version, readings });
  try {
    await run((shown) => {
      status = shown;
    });
  } finally {
    server.close();
  }
}
