/** The primary's way to its standby, over the addon's own sockets. */
import { afterEach, expect, test, vi } from 'vitest';
import { connectPeer } from '../../src/agent/peer-address.ts';
import { native, type PeerConnection } from '../../src/native/binding.ts';

const cleanups: (() => void)[] = [];
afterEach(() => {
  for (const cleanup of cleanups.splice(0).reverse()) cleanup();
});

function listen(onAccepted: (connection: PeerConnection) => void): number {
  const acceptor = new native.Acceptor({
    host: '127.0.0.1',
    port: 0,
    credentials: null,
    onAccepted: (_link, connection) => onAccepted(connection),
    onRefused: () => {},
  });
  cleanups.push(() => acceptor.close());
  return acceptor.port;
}

test('of a name, the address that answered is told: the other connections go there, and resolve nothing', async () => {
  const port = listen((connection) => cleanups.push(() => connection.close()));
  const address = await new Promise((resolve, reject) => {
    connectPeer({ host: 'localhost', port }, null, {
      onConnected: (link, _security, reached) => {
        link.close();
        resolve(reached);
      },
      onMessage: () => {},
      onLost: (reason) => reject(new Error(reason)),
    });
  });
  expect(address).toEqual({ host: '127.0.0.1', port });
});

test('a connection that cannot be used is a lost one', async () => {
  const port = listen(() => expect.unreachable());
  const Real = native.PeerConnection;
  const given = vi.spyOn(native, 'PeerConnection').mockImplementation(
    class {
      constructor() {
        const connection = new Real();
        const outOfDescriptors = () => {
          throw new Error('Too many open files');
        };
        Object.defineProperty(connection, 'openSocket', { value: outOfDescriptors });
        // biome-ignore lint/correctness/noConstructorReturn: the real one, but for that
        return connection as PeerConnection;
      }
    } as typeof Real,
  );
  cleanups.push(() => given.mockRestore());
  const reason = await new Promise<string>((resolve) => {
    connectPeer({ host: '127.0.0.1', port }, null, {
      onConnected: () => expect.unreachable(),
      onMessage: () => {},
      onLost: resolve,
    });
  });
  expect(reason).toBe(`the connection to 127.0.0.1:${port} can't be used: Too many open files`);
});
