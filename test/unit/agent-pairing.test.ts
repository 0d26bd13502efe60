/** Pairing over real TLS sockets, and who can get into it. */
import { spawnSync } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { connect, type TLSSocket } from 'node:tls';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { hostCredentials, trustCertificate } from '../../src/agent/credential-files.ts';
import { isLoopback, openCredentials } from '../../src/agent/link-security.ts';
import { Log } from '../../src/agent/log.ts';
import { decodeCode, encodeCode, joinPairing, PairingOffer } from '../../src/agent/pairing.ts';

let folder: string;
let offer: PairingOffer | null = null;

beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'colo-pairing-'));
});
afterEach(() => {
  offer?.close('the test is over');
  offer = null;
  rmSync(folder, { recursive: true });
});

const host = (name: string, vms: string[] | null = null) => hostCredentials(path.join(folder, name), vms);
const trusted = (name: string) => readFileSync(path.join(folder, name, 'trusted.pem'), 'utf8');

async function offerOf(name: string, vms: string[] | null = null, timeoutMs = 60_000): Promise<PairingOffer> {
  offer = await PairingOffer.open(host(name, vms), { host: '127.0.0.1', port: 0 }, timeoutMs);
  return offer;
}

/** One that is through its handshake, and silent so far; `closed` resolves with what it was answered. */
async function connected(name: string, { code }: PairingOffer): Promise<Guest> {
  const { key, certificate: cert } = host(name);
  const { address } = decodeCode(code);
  const socket = connect({ ...address, key, cert, rejectUnauthorized: false });
  let answer = '';
  socket.on('data', (chunk) => {
    answer += chunk;
  });
  socket.on('error', () => {}); // it may be closed while it writes
  const closed = new Promise<string>((resolve) => socket.on('close', () => resolve(answer)));
  await once(socket, 'session'); // the server's first words after its handshake
  await new Promise((resolve) => setImmediate(resolve)); // what is written inside of that event stays in Node.js
  return { socket, closed };
}

interface Guest {
  socket: TLSSocket;
  closed: Promise<string>;
}

const secretLine = ({ code }: PairingOffer) => `${Buffer.from(decodeCode(code).secret).toString('hex')}\n`;

/** A host whose certificate may issue others, by its extensions. */
function authority(name: string, extensions: string) {
  const made = path.join(folder, name);
  mkdirSync(made);
  const names = 'subjectAltName=URI:colo-agent://vm/*';
  writeFileSync(
    path.join(made, 'config'),
    `[req]\ndistinguished_name=name\nx509_extensions=extensions\n[name]\n[extensions]\n${names}\n${extensions}\n`,
  );
  const args =
    'req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -keyout key.pem -out certificate.pem -days 2 -subj /CN=ca -config config';
  expect(spawnSync('openssl', args.split(' '), { cwd: made }).status).toBe(0);
  return host(name);
}

describe('pairing', () => {
  test('each host has the certificate of the other, and the code is used up', async () => {
    const { code, paired } = await offerOf('a');
    const joined = await joinPairing(host('b'), decodeCode(code));
    expect(joined.fingerprint).toBe(host('a').fingerprint);
    expect((await paired).fingerprint).toBe(host('b').fingerprint);
    expect(trusted('a')).toBe(host('b').certificate);
    expect(trusted('b')).toBe(host('a').certificate);
    expect(statSync(path.join(folder, 'b', 'key.pem')).mode & 0o777).toBe(0o600);
    await expect(joinPairing(host('c'), decodeCode(code))).rejects.toThrow(
      /pairing with 127\.0\.0\.1:\d+ failed/,
    );
  });

  test('nor is it good for one who was connected when it was used', async () => {
    const open = await offerOf('a');
    const late = await connected('late', open);
    await joinPairing(host('b'), decodeCode(open.code));
    await open.paired;
    late.socket.write(secretLine(open));
    expect(await late.closed).toBe('');
    expect(trusted('a')).toBe(host('b').certificate);
  });

  test('or when the offer ended', async () => {
    const open = await offerOf('a');
    const late = await connected('late', open);
    open.close('the test says so');
    late.socket.write(secretLine(open));
    expect(await late.closed).toBe('');
    expect(() => trusted('a')).toThrow(/ENOENT/);
  });

  test('of two who say it at once one is paired', async () => {
    const open = await offerOf('a');
    const guests = [await connected('b', open), await connected('c', open)];
    for (const { socket } of guests) socket.write(secretLine(open));
    const answers = await Promise.all(guests.map(({ closed }) => closed));
    expect(answers.filter((answer) => answer === 'paired\n')).toHaveLength(1);
    expect([host('b').certificate, host('c').certificate]).toContain(trusted('a'));
  });

  test.each(['basicConstraints=critical,CA:TRUE', 'keyUsage=critical,digitalSignature,keyCertSign'])(
    'a certificate that may issue others (%s) is refused on both sides',
    async (extensions) => {
      const ca = authority('ca', extensions);
      const { code } = await offerOf('a');
      await expect(joinPairing(ca, decodeCode(code))).rejects.toThrow(
        /failed: the joining host shows a certificate that may issue others/,
      );
      expect(() => trusted('a')).toThrow(/ENOENT/);
      offer?.close('the next one is the CA’s');
      const { code: codeOfCa } = await offerOf('ca');
      await expect(joinPairing(host('b'), decodeCode(codeOfCa))).rejects.toThrow(
        /failed: the host that printed the code shows a certificate that may issue others/,
      );
      for (const name of ['b', 'ca']) expect(() => trusted(name)).toThrow(/ENOENT/);
    },
  );

  test('a line that is too long is no answer, also with its end', async () => {
    const open = await offerOf('a');
    const { socket, closed } = await connected('b', open);
    socket.write(`${'0'.repeat(1025)}\n`);
    expect(await closed).toBe('');
  });

  test('a trusted.pem without its last newline is not spoilt', () => {
    const [a, b, c] = ['a', 'b', 'c'].map((name) => host(name));
    if (!a || !b || !c) return expect.unreachable();
    writeFileSync(path.join(a.folder, 'trusted.pem'), b.certificate.trimEnd());
    trustCertificate(a.folder, new X509Certificate(c.certificate));
    expect(trusted('a')).toBe(b.certificate + c.certificate);
  });

  test('a second pairing adds a host and forgets none', async () => {
    for (const name of ['b', 'c']) {
      const { code, paired } = await offerOf('a');
      await joinPairing(host(name), decodeCode(code));
      await paired;
    }
    expect(trusted('a')).toBe(host('b').certificate + host('c').certificate);
  });

  test('who stands in between is noticed before the secret is said', async () => {
    const between = await offerOf('mallory');
    const stolen = { ...decodeCode(between.code), fingerprint: host('a').fingerprint };
    await expect(joinPairing(host('b'), stolen)).rejects.toThrow(/not the host that printed the code/);
    expect(() => trusted('b')).toThrow(/ENOENT/);
  });

  test('a wrong secret is refused, and some of them end the offer', async () => {
    const { code, paired } = await offerOf('a');
    const guess = { ...decodeCode(code), secret: Buffer.alloc(16) };
    for (let i = 0; i < 5; ++i)
      await expect(joinPairing(host('b'), guess)).rejects.toThrow(/the code is wrong, or was used before/);
    await expect(paired).rejects.toThrow(/5 wrong codes came/);
    expect(() => trusted('a')).toThrow(/ENOENT/);
  });

  test('both certificates are for the VMs of the offer', async () => {
    const { code, paired } = await offerOf('a', ['web1', 'web2']);
    const { vms } = decodeCode(code);
    expect(vms).toEqual(['web1', 'web2']);
    await expect(joinPairing(host('wide'), decodeCode(code))).rejects.toThrow(/is for other VMs \(\*\)/);
    await joinPairing(host('b', vms), decodeCode(code));
    await paired;
    expect(() => host('b', ['db1'])).toThrow(/is for web1, web2, not for db1: choose another folder/);
  });

  test('who sends a byte now and then holds no place for ever', async () => {
    const address = { host: '127.0.0.1', port: 0 };
    offer = await PairingOffer.open(host('a'), address, 60_000, 300);
    const own = host('b');
    const { port } = decodeCode(offer.code).address;
    const slow = connect({ port, key: own.key, cert: own.certificate, rejectUnauthorized: false });
    slow.on('error', () => {}); // it is closed while it writes
    const drip = setInterval(() => slow.write('0'), 20);
    await new Promise((resolve) => slow.resume().on('close', resolve)); // `once` would take that error for its own
    clearInterval(drip);
  });

  test('nobody comes: the offer ends', async () => {
    const { paired } = await offerOf('a', null, 1);
    await expect(paired).rejects.toThrow(/nobody used the code/);
  });

  test.each([
    ['', /it begins with colo1-/],
    ['colo1-', /not a pairing code/],
    ['colo1-bm9uc2Vuc2U', /not a pairing code/],
    [
      encodeCode({
        address: { host: 'h', port: 1 },
        fingerprint: 'a'.repeat(63),
        secret: Buffer.alloc(16),
        vms: ['*'],
      }),
      /it is cut/,
    ],
    [
      encodeCode({
        address: { host: 'h', port: 1 },
        fingerprint: 'a'.repeat(64),
        secret: Buffer.alloc(16),
        vms: ['../x'],
      }),
      /its VMs are no names/,
    ],
  ])('%j is no code', (code, reason) => {
    expect(() => decodeCode(code)).toThrow(reason);
  });
});

test('a certificate that ends soon is a warning every day', async () => {
  const nowMs = Date.now();
  const a = host('a');
  writeFileSync(path.join(a.folder, 'trusted.pem'), a.certificate);
  const warnings: string[] = [];
  const log = new Log(
    'warn',
    () => ({}),
    (line) => warnings.push(line),
  );
  vi.useFakeTimers({ now: nowMs });
  try {
    const open = () => openCredentials({ vm: 'web1', folder: a.folder, peerName: '' }, log);
    open().close();
    vi.advanceTimersByTime(86_400_000);
    expect(warnings).toEqual([]);
    vi.setSystemTime(nowMs + (10 * 365 - 20) * 86_400_000);
    vi.advanceTimersByTime(3 * 86_400_000);
    expect(warnings).toHaveLength(3);
    expect(warnings[0]).toMatch(/our certificate ends soon.*"names":"every VM","expires":"20/);
  } finally {
    vi.useRealTimers();
  }
});

test.each([
  ['127.0.0.1', true],
  ['127.255.0.9', true],
  ['::1', true],
  ['::', false],
  ['0.0.0.0', false],
  ['127.evil.example', false],
  ['localhost', false],
  ['10.0.0.1', false],
])('%s is a loopback address: %s', (address, loopback) => {
  expect(isLoopback(address)).toBe(loopback);
});
