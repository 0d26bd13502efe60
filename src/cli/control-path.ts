import { readdirSync } from 'node:fs';
import path from 'node:path';
import { CliError, EXIT } from './exit-codes.ts';

const RUN_FOLDER = '/run/colo-agent';

/** Where an agent listens unless --control says otherwise. */
export function defaultControlPath(vm: string, role: 'primary' | 'secondary'): string {
  return path.join(RUN_FOLDER, `${vm}-${role}.sock`);
}

/** The one agent of this host, for commands without --control. */
export function onlyControlPath(): string {
  const sockets = controlSockets();
  const [only, another] = sockets;
  if (only === undefined) {
    throw new CliError(
      EXIT.unavailable,
      `no agent runs here (nothing in ${RUN_FOLDER}); give --control if its socket is elsewhere`,
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
