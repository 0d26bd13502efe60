import { onSupervisorGone } from '../agent/supervisor-channel.ts';

/** Ends in order at the first SIGTERM or SIGINT, and when the daemon has gone that this process belongs to; at once at the second signal. */
export function onTerminationSignal(end: () => void): void {
  onSupervisorGone(end);
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.once(signal, () => {
      end();
      process.once(signal, () => process.exit(1));
    });
  }
}
