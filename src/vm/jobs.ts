/** QEMU's jobs (docs/interop/qmp-spec, JOB_STATUS_CHANGE): waiting for a status without missing one. */
import type { QmpClient } from '../qmp/client.ts';
import type { JobStatus } from '../qmp/commands.ts';

export interface JobEvents {
  /** Resolves with the first status from now on that `accept` takes. Rejects when the connection ends first. */
  until(accept: (status: JobStatus) => boolean): Promise<JobStatus>;
  stop(): void;
}

/** Listens from now on: a short job concludes before the reply to the command that started it has been read. */
export function jobEvents(qmp: QmpClient, id: string): JobEvents {
  const stops: (() => void)[] = [];
  return {
    until: (accept) => {
      const found = new Promise<JobStatus>((resolve, reject) => {
        stops.push(
          qmp.onEvent('JOB_STATUS_CHANGE', ({ data }) => {
            if (data.id === id && accept(data.status)) resolve(data.status);
          }),
          qmp.onClosed((reason) => reject(new Error(reason))),
        );
      });
      found.catch(() => {}); // whoever awaits it is told; a command that fails first leaves nobody to
      return found;
    },
    stop: () => {
      for (const stop of stops) stop();
    },
  };
}
