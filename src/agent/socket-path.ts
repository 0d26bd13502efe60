import { chmodSync, lstatSync, mkdirSync, renameSync, rmSync } from 'node:fs';
import { createConnection, type ListenOptions, type Server } from 'node:net';
import path from 'node:path';

/** Whether somebody accepts connections at the path of a unix socket. */
export async function answersAt(socketPath: string): Promise<boolean> {
  return await new Promise((resolve) => {
    const probe = createConnection(socketPath);
    probe.once('connect', () => {
      probe.destroy();
      resolve(true);
    });
    probe.once('error', () => resolve(false));
  });
}

/** Has `server` listen. INVARIANT 7: what it reports later is a connection that couldn't be accepted, for want of descriptors, say: no reason to end. */
export function listening(server: Server, where: ListenOptions): Promise<void> {
  return new Promise((resolve, reject) => {
    server.on('error', reject);
    server.listen(where, resolve);
  });
}

/** The kernel takes 107, and while the socket is made its name is longer by a process id (listenAtPath). */
export const SOCKET_PATH_BYTES_MAX = 99;

/** Throws Error for a path that can't be a socket's; `sun_path` of unix(7) has no room for more. */
export function assertSocketPath(socketPath: string): void {
  const bytes = Buffer.byteLength(socketPath);
  if (bytes > SOCKET_PATH_BYTES_MAX)
    throw new Error(
      `${socketPath} has ${bytes} bytes, and a socket's path ${SOCKET_PATH_BYTES_MAX} at the most`,
    );
}

/** Has `server` listen at `socketPath` (mode 0660), whose folder is made; a socket that is there already is replaced. Throws Error where something else is. */
export async function listenAtPath(server: Server, socketPath: string): Promise<void> {
  if (lstatSync(socketPath, { throwIfNoEntry: false })?.isSocket() === false)
    throw new Error(`${socketPath} is there, and is no socket: give another path`);
  mkdirSync(path.dirname(socketPath), { recursive: true, mode: 0o755 });
  // It appears under its name only when it answers and has its final mode.
  const preparing = `${socketPath}.${process.pid}`;
  rmSync(preparing, { force: true });
  await listening(server, { path: preparing });
  chmodSync(preparing, 0o660);
  renameSync(preparing, socketPath);
}
