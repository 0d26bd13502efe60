/** A relay between two UNIX sockets whose target seems to be further away: what it answers arrives later by `delayMs`, in order. */
import { connect, createServer } from 'node:net';

/** Listens on one path, connects to the other; resolves with a function that ends it. */
export async function openDelayRelay(listenPath, targetPath, delayMs) {
  const sockets = new Set();
  const server = createServer((client) => {
    const remote = connect(targetPath);
    for (const socket of [client, remote]) {
      sockets.add(socket);
      socket.on('error', () => socket.destroy()); // the other one follows by the close below
    }
    client.on('close', () => remote.destroy());
    remote.on('close', () => client.destroy());
    client.pipe(remote);
    // Timers of one duration fire in the order in which they were set.
    remote.on('data', (chunk) => setTimeout(() => client.write(chunk), delayMs));
  });
  await new Promise((resolve, reject) => server.once('error', reject).listen(listenPath, resolve));
  return () => {
    server.close();
    for (const socket of sockets) socket.destroy();
  };
}
