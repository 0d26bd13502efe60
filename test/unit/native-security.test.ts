/** Credentials, certificates and encrypted connections as JavaScript sees them. */
import { execFileSync, spawn } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type Acceptor, native, type PeerConnection, type TlsCredentials } from '../../src/native/binding.ts';
import { until } from './native-harness.ts';

const PREFACE = Buffer.concat([Buffer.from('COLOCTL1'), Buffer.alloc(56)]);
const TIMEOUT_MS = 10_000;

let folder: string;
const cleanups: (() => void)[] = [];
beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'colo-native-tls-'));
});
afterEach(() => {
  for (const cleanup of cleanups.splice(0).reverse()) cleanup();
  rmSync(folder, { recursive: true });
});

function closing<T extends { close(): void }>(handle: T): T {
  cleanups.push(() => handle.close());
  return handle;
}

function makeCertificate(vms: string[]): { key: string; certificate: string } {
  const nowS = Math.floor(Date.now() / 1000);
  return native.makeCertificate({ commonName: 'test', vms, validFromS: nowS - 60, validUntilS: nowS + 60 });
}

/** Trusts itself: both ends of a test's connection can be the same host. */
function credentials(vms: string[], keyMode = 0o600): TlsCredentials {
  const { key, certificate } = makeCertificate(vms);
  const file = (name: string, content: string, mode: number) => {
    const full = path.join(folder, `${name}-${vms.join()}`);
    writeFileSync(full, content, { mode });
    return full;
  };
  const certificateFile = file('certificate', certificate, 0o644);
  return closing(
    new native.TlsCredentials({
      certificateFile,
      keyFile: file('key', key, keyMode),
      trustedFile: certificateFile,
      vm: 'web1',
      peerName: '',
    }),
  );
}

function acceptor(own: TlsCredentials | null, accepted: PeerConnection[], refused: string[] = []): Acceptor {
  return closing(
    new native.Acceptor({
      host: '127.0.0.1',
      port: 0,
      credentials: own,
      onAccepted: (_link, connection) => accepted.push(connection),
      onRefused: (_peer, reason) => refused.push(reason),
    }),
  );
}

test('a certificate names its VMs and its time, and is no CA', () => {
  const { certificate } = makeCertificate(['web1', 'web2']);
  const parsed = new X509Certificate(certificate);
  expect(parsed.subjectAltName).toBe('URI:colo-agent://vm/web1, URI:colo-agent://vm/web2');
  expect(parsed.ca).toBe(false);
  expect(parsed.verify(parsed.publicKey)).toBe(true);
  expect(Date.parse(parsed.validTo)).toBeGreaterThan(Date.now());
});

test('credentials that are of no use are refused with the reason', () => {
  expect(() => credentials(['web1'], 0o644)).toThrow(
    expect.objectContaining({
      code: 'ERR_COLO_CREDENTIALS',
      message: expect.stringContaining('can be read by others than its owner'),
    }),
  );
  expect(credentials(['*']).own()).toMatchObject({ names: 'every VM' });
});

describe('PeerConnection', () => {
  test('carries a conversation between two Node.js sockets, and its end', async () => {
    const own = credentials(['*']);
    const accepted: PeerConnection[] = [];
    const { port } = acceptor(own, accepted);
    const connection = closing(new native.PeerConnection());
    await connection.connect('127.0.0.1', port, TIMEOUT_MS, own);
    expect(connection.security()).toMatchObject({
      cipher: 'TLSv1.3, TLS_AES_128_GCM_SHA256',
      peer: 'every VM',
      fingerprint: own.own().fingerprint,
    });
    const client = new net.Socket({ fd: connection.openSocket() });
    expect(() => connection.openSocket()).toThrow(/was given away/);
    client.write(PREFACE);
    await until(() => accepted.length === 1);
    const [theirs] = accepted as [PeerConnection];
    const server = new net.Socket({ fd: theirs.openSocket() });
    const closed = [once(client, 'close'), once(server, 'close')];
    const answer = once(client, 'data');
    client.end('hello');
    expect(String((await once(server, 'data'))[0])).toBe('hello');
    server.end('bye');
    expect(String((await answer)[0])).toBe('bye');
    await Promise.all(closed);
  });

  test('says who refused whom, and why', async () => {
    const refused: string[] = [];
    const { port } = acceptor(credentials(['*']), [], refused);
    const connection = closing(new native.PeerConnection());
    await expect(
      connection.connect('127.0.0.1', port, TIMEOUT_MS, credentials(['db1'])),
    ).rejects.toMatchObject({
      code: 'ERR_COLO_LINK',
      message: expect.stringContaining('is self-signed and not in'),
    });
    await until(() => refused.length === 1);
    expect(refused[0]).toContain("the peer doesn't trust our certificate");
  });

  test('close() gives a connection up that nobody answers', async () => {
    const silent = net.createServer().listen(0, '127.0.0.1');
    await once(silent, 'listening');
    cleanups.push(() => silent.close());
    const connection = new native.PeerConnection();
    const { port } = silent.address() as net.AddressInfo;
    const connecting = connection.connect('127.0.0.1', port, 600_000, credentials(['*']));
    expect(() => connection.security()).toThrow(expect.objectContaining({ code: 'ERR_COLO_BUSY' }));
    connection.close();
    await expect(connecting).rejects.toMatchObject({ code: 'ERR_COLO_LINK' });
  });

  test('is plain text without credentials, and then a socket of its own', async () => {
    const accepted: PeerConnection[] = [];
    const { port } = acceptor(null, accepted);
    const connection = new native.PeerConnection();
    await connection.connect('127.0.0.1', port, TIMEOUT_MS, null);
    expect(connection.security()).toBeNull();
    const client = new net.Socket({ fd: connection.openSocket() });
    client.write(PREFACE);
    await until(() => accepted.length === 1);
    accepted[0]?.close();
    await once(client.resume(), 'close');
  });
});

/** Without capabilities, as most processes are: root's may look into everything. */
const UNPRIVILEGED = ['--bounding-set=-all', '--inh-caps=-all'];

test('after forbidCoreDumps() a process of the same user can not look into it', async () => {
  const binding = path.join(import.meta.dirname, '..', '..');
  const program = `
    const native = require('node-gyp-build')(${JSON.stringify(binding)});
    process.stdin.once('data', () => { native.forbidCoreDumps(); process.stdout.write('forbidden'); });
    process.stdout.write('ready');
    process.stdin.on('end', () => process.exit());
  `;
  const child = spawn('setpriv', [...UNPRIVILEGED, process.execPath, '-e', program], { cwd: binding });
  cleanups.push(() => void child.kill('SIGKILL'));
  const look = () =>
    execFileSync('setpriv', [...UNPRIVILEGED, 'head', '-c', '1', `/proc/${child.pid}/environ`], {
      stdio: 'pipe',
    });
  await once(child.stdout, 'data');
  expect(look()).toHaveLength(1);
  child.stdin.write('now');
  await once(child.stdout, 'data');
  expect(look).toThrow(/Permission denied/);
});
