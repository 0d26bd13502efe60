/**
 * `colo-agent pair`: makes two hosts trust exactly each other. One host prints a code, which a person carries to the other; it holds the
 * first host's address, its certificate's fingerprint and a secret that is good once. The second host connects, is sure by the fingerprint
 * whom it talks to before it says the secret, and by the secret the first host is sure, too. Each keeps the other's certificate.
 */

import { createHash, randomBytes, timingSafeEqual, X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { connect, createServer, type Server, type TLSSocket } from 'node:tls';
import { native } from '../native/binding.ts';
import { type HostCredentials, trustCertificate, vmsOf } from './credential-files.ts';
import { formatHostPort, type HostPort, parseHostPort } from './peer-address.ts';

const CODE_PREFIX = 'colo1-';
const SECRET_BYTES = 16;
const LINE_BYTES_MAX = 1024;
/** What one connection may take; and how many may be open, and how many wrong secrets are borne, before the pairing is given up. */
const EXCHANGE_TIMEOUT_MS = 10_000;
const CONNECTIONS_MAX = 4;
const WRONG_SECRETS_MAX = 5;

export class PairingError extends Error {
  override readonly name = 'PairingError';
}

export interface PairingCode {
  address: HostPort;
  /** SHA-256 of the first host's certificate, hex digits. */
  fingerprint: string;
  secret: Uint8Array;
  /** For which VMs both certificates are: names, or '*'. */
  vms: string[];
}

export function encodeCode({ address, fingerprint, secret, vms }: PairingCode): string {
  const fields = [formatHostPort(address), fingerprint, Buffer.from(secret).toString('hex'), vms];
  return CODE_PREFIX + Buffer.from(JSON.stringify(fields)).toString('base64url');
}

/** Throws PairingError for anything that encodeCode doesn't make. */
export function decodeCode(text: string): PairingCode {
  const code = text.trim();
  try {
    if (!code.startsWith(CODE_PREFIX)) throw new Error(`it begins with ${CODE_PREFIX}`);
    const [address, fingerprint, secret, vms] = JSON.parse(
      Buffer.from(code.slice(CODE_PREFIX.length), 'base64url').toString(),
    ) as [string, string, string, string[]];
    if (!/^[0-9a-f]{64}$/.test(fingerprint) || !/^[0-9a-f]{32}$/.test(secret)) throw new Error('it is cut');
    if (!Array.isArray(vms) || !vms.every((vm) => vm === '*' || /^[A-Za-z0-9._-]{1,63}$/.test(vm)))
      throw new Error('its VMs are no names');
    return { address: parseHostPort(address), fingerprint, secret: Buffer.from(secret, 'hex'), vms };
  } catch (error) {
    throw new PairingError(
      `this is not a pairing code (${(error as Error).message}): copy all of the line that \`colo-agent pair\` printed on the other host`,
    );
  }
}

export interface Paired {
  /** Of the other host's certificate. */
  fingerprint: string;
}

/** The first host's side: `code` is for the other host, `paired` resolves when that has used it. */
export class PairingOffer {
  readonly code: string;
  readonly paired: Promise<Paired>;
  readonly #own: HostCredentials;
  readonly #secret = randomBytes(SECRET_BYTES);
  readonly #server: Server;
  readonly #exchangeMs: number;
  #settle: { resolve(paired: Paired): void; reject(error: Error): void } | null = null;
  #wrongSecrets = 0;
  readonly #open = new Set<TLSSocket>();

  /**
   * Listens at `listen`, which the other host must reach under the same address, for `timeoutMs`; one connection may take `exchangeMs`, its handshake
   * apart. Throws when it can't.
   */
  static async open(
    own: HostCredentials,
    listen: HostPort,
    timeoutMs: number,
    exchangeMs = EXCHANGE_TIMEOUT_MS,
  ): Promise<PairingOffer> {
    const server = createServer({
      key: own.key,
      cert: own.certificate,
      minVersion: 'TLSv1.3',
      requestCert: true,
      rejectUnauthorized: false, // the secret is what counts: nobody knows the certificate yet
      handshakeTimeout: EXCHANGE_TIMEOUT_MS,
    });
    server.maxConnections = CONNECTIONS_MAX;
    server.listen(listen.port, listen.host);
    await once(server, 'listening');
    const bound = server.address();
    const port = typeof bound === 'object' && bound ? bound.port : listen.port;
    return new PairingOffer(own, server, { host: listen.host, port }, { timeoutMs, exchangeMs });
  }

  private constructor(
    own: HostCredentials,
    server: Server,
    address: HostPort,
    { timeoutMs, exchangeMs }: { timeoutMs: number; exchangeMs: number },
  ) {
    this.#own = own;
    this.#server = server;
    this.#exchangeMs = exchangeMs;
    const { fingerprint, vms } = own;
    this.code = encodeCode({ address, fingerprint, secret: this.#secret, vms });
    this.paired = new Promise((resolve, reject) => {
      this.#settle = { resolve, reject };
    });
    this.paired.catch(() => {}); // whoever awaits it gets it, too
    server.on('secureConnection', (socket) => {
      this.#open.add(socket);
      socket.on('close', () => this.#open.delete(socket));
      void this.#serve(socket);
    });
    server.on('tlsClientError', () => {}); // a stranger's; the offer stands
    const timer = setTimeout(
      () => this.close(`nobody used the code within ${Math.round(timeoutMs / 60_000)} minutes`),
      timeoutMs,
    );
    server.on('close', () => clearTimeout(timer));
  }

  close(reason: string): void {
    this.#settle?.reject(new PairingError(reason));
    this.#end();
  }

  /** Nobody is paired any more. Who has his answer may still read it; who hasn't spoken yet isn't waited for. */
  #end(): void {
    this.#settle = null;
    this.#server.close();
    for (const socket of this.#open) {
      if (!socket.writableEnded) socket.destroy();
    }
  }

  async #serve(socket: TLSSocket): Promise<void> {
    try {
      const line = await readLine(socket, this.#exchangeMs);
      // The secret is good once: also for who was connected, or in his handshake, when it was used or the offer ended.
      if (this.#settle === null || !this.#isSecret(line)) return this.#refuse(socket);
      const certificate = certificateOf(socket, 'the joining host');
      const vms = vmsOf(certificate).sort().join();
      if (vms !== [...this.#own.vms].sort().join())
        throw new PairingError(`the other host's certificate is for other VMs (${vms}) than this pairing`);
      trustCertificate(this.#own.folder, certificate);
      socket.end('paired\n');
      this.#settle.resolve({ fingerprint: fingerprintOf(certificate) });
      this.#end();
    } catch (error) {
      socket.end(`${(error as Error).message}\n`);
    }
  }

  #isSecret(line: string): boolean {
    const digest = (text: string) => createHash('sha256').update(text).digest();
    return timingSafeEqual(digest(line), digest(this.#secret.toString('hex')));
  }

  #refuse(socket: TLSSocket): void {
    socket.end('the code is wrong, or was used before\n');
    if (++this.#wrongSecrets >= WRONG_SECRETS_MAX)
      this.close(`${WRONG_SECRETS_MAX} wrong codes came: begin again`);
  }
}

/** The second host's side. Throws PairingError with the reason. */
export async function joinPairing(own: HostCredentials, code: PairingCode): Promise<Paired> {
  const where = formatHostPort(code.address);
  const socket = connect({
    host: code.address.host,
    port: code.address.port,
    key: own.key,
    cert: own.certificate,
    minVersion: 'TLSv1.3',
    rejectUnauthorized: false, // its fingerprint is compared below, before anything is said
    checkServerIdentity: () => undefined,
  });
  socket.setTimeout(EXCHANGE_TIMEOUT_MS, () => socket.destroy(new Error('no answer')));
  try {
    await once(socket, 'secureConnect');
    const certificate = certificateOf(socket, 'the host that printed the code');
    if (fingerprintOf(certificate) !== code.fingerprint)
      throw new PairingError('it is not the host that printed the code: its certificate is another');
    socket.write(`${Buffer.from(code.secret).toString('hex')}\n`);
    const answer = await readLine(socket, EXCHANGE_TIMEOUT_MS);
    if (answer !== 'paired') throw new PairingError(answer);
    trustCertificate(own.folder, certificate);
    return { fingerprint: code.fingerprint };
  } catch (error) {
    throw new PairingError(`pairing with ${where} failed: ${(error as Error).message}`);
  } finally {
    socket.destroy();
  }
}

/** `whose`: for the error, which may be read on either host. A CA's is refused: with it, everybody whom that CA ever certifies would be trusted. */
function certificateOf(socket: TLSSocket, whose: string): X509Certificate {
  const { raw } = socket.getPeerCertificate();
  if (!raw) throw new PairingError(`${whose} shows no certificate`);
  const certificate = new X509Certificate(raw);
  if (native.certificateMayIssue(raw))
    throw new PairingError(
      `${whose} shows a certificate that may issue others: give it one of its own, with basicConstraints=CA:FALSE (or choose another folder with --tls, where \`pair\` makes one)`,
    );
  return certificate;
}

function fingerprintOf(certificate: X509Certificate): string {
  return createHash('sha256').update(certificate.raw).digest('hex');
}

/** All of it within `timeoutMs`: a byte now and then would hold one of the few connections. What follows the line is thrown away. */
function readLine(socket: TLSSocket, timeoutMs: number): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = '';
    const timer = setTimeout(() => socket.destroy(new Error('no answer')), timeoutMs);
    const take = (chunk: Buffer) => {
      text += chunk.toString('latin1');
      const end = text.indexOf('\n');
      if ((end < 0 ? text.length : end) > LINE_BYTES_MAX) socket.destroy(new Error('too long an answer'));
      else if (end >= 0) {
        socket.off('data', take).resume(); // else its end is never seen
        resolve(text.slice(0, end));
      }
    };
    socket.on('data', take);
    socket.on('error', reject);
    socket.on('close', () => {
      clearTimeout(timer);
      reject(new Error('the other host closed the connection'));
    });
  });
}
