import { readdirSync } from 'node:fs';
import path from 'node:path';
import { CliError, EXIT } from './exit-codes.ts';

const RUN_FOLDER = '/run/colo-agent';

/** Where an agent listens unless --control says otherwise. */
export function defaultControlPath(vm: string, role: 'primary' | 'secondary'): string {
  return path.join(RUN_FOLDER, `${vm}-${role}.sock`);
}

/** Where the daemon listens unless --control says otherwise. */
export const DAEMON_SOCKET = path.join(RUN_FOLDER, 'control.sock');

/** For commands without --control: the daemon; where there is none, the one agent of this host, or of `vm`. */
export function onlyControlPath(vm: string | null): string {
  const all = controlSockets();
  if (all.includes(DAEMON_SOCKET)) return DAEMON_SOCKET;
  const sockets = all.filter((each) => vm === null || each.startsWith(path.join(RUN_FOLDER, `${vm}-`)));
  const [only, another] = sockets;
  if (only === undefined) {
    throw new CliError(
      EXIT.unavailable,
      `no agent ${vm === null ? '' : `of VM ${vm} `}runs here (no socket of one in ${RUN_FOLDER}); give --control if its socket is elsewhere`,
    );
  }
  if (another !== undefined) {
    throw new CliError(
      EXIT.usage,
      `several agents run here; choose one with --control:\n  ${sockets.join('\n  ')}`,
    );
  }
  return only;
}

function controlSockets(): string[] {
  try {
    return readdirSync(RUN_FOLDER)
      .filter((name) => name.endsWith('.sock'))
      .map((name) => path.join(RUN_FOLDER, name));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
}
