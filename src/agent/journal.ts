import { fstatSync } from 'node:fs';

/**
 * Whether what is written to `fd` goes to the journal, which then takes a line's `<N>` for its priority: JOURNAL_STREAM has the device and inode of the
 * service's streams, and is inherited also by who has others (systemd.exec(5)).
 */
export function goesToJournal(fd: number, env: NodeJS.ProcessEnv): boolean {
  const stream = env['JOURNAL_STREAM'];
  if (stream === undefined) return false;
  try {
    const { dev, ino } = fstatSync(fd, { bigint: true });
    return stream === `${dev}:${ino}`;
  } catch {
    return false; // closed: nothing is written there
  }
}
