/** How the two agents know each other: the files that `colo-agent pair` makes, or an own CA's, and what `status` says of a link. */
import { isIPv4 } from 'node:net';
import path from 'node:path';
import { native, type TlsCredentials, type TlsInfo } from '../native/binding.ts';
import type { Log } from './log.ts';

export type { TlsCredentials };

export const CREDENTIAL_FILES = {
  certificate: 'certificate.pem',
  key: 'key.pem',
  trusted: 'trusted.pem',
} as const;

export interface LinkSecurityOptions {
  vm: string;
  /** The folder with the three files. */
  folder: string;
  /** With an own CA: the peer's host name or address. Empty: its certificate must be for the VM. */
  peerName: string;
}

export const EXPIRES_SOON_S = 30 * 86_400;
/** A session outlives its certificates; what comes after it doesn't begin. So it has to be said in time, also by an agent that runs for years. */
const EXPIRY_LOOK_MS = 86_400_000;

/** Throws NativeError ERR_COLO_CREDENTIALS, which names the file and what to do. Warns of a certificate that ends soon, every day. */
export function openCredentials({ vm, folder, peerName }: LinkSecurityOptions, log: Log): TlsCredentials {
  const credentials = new native.TlsCredentials({
    certificateFile: path.join(folder, CREDENTIAL_FILES.certificate),
    keyFile: path.join(folder, CREDENTIAL_FILES.key),
    trustedFile: path.join(folder, CREDENTIAL_FILES.trusted),
    vm,
    peerName,
  });
  const own = credentials.own();
  warnOfExpiry(own, log);
  setInterval(() => warnOfExpiry(own, log), EXPIRY_LOOK_MS).unref();
  return credentials;
}

function warnOfExpiry({ names, expiresS }: { names: string; expiresS: number }, log: Log): void {
  if (expiresS - Date.now() / 1000 >= EXPIRES_SOON_S) return;
  log.warn(
    'our certificate ends soon, or has ended: pair the hosts again, or renew it, and restart this agent',
    { names, expires: isoTime(expiresS) },
  );
}

export function isoTime(seconds: number): string {
  // An own CA may write a time that no Date can hold.
  return new Date(Math.min(seconds * 1000, 8.64e15)).toISOString();
}

/** Why these addresses, of our own side and of the peers, may not be spoken to in plain text; null: they may. */
export function plainTextObjection(hosts: readonly string[]): string | null {
  const reachable = hosts.find((host) => !isLoopback(host));
  if (reachable === undefined) return null;
  return (
    `--insecure is for loopback addresses (127.0.0.0/8 or ::1), not for ${reachable}: there anybody could read the guest's memory ` +
    'and replace it. Leave it out and run `colo-agent pair` on both hosts'
  );
}

/** What is dumped would hold the key, and the guest's memory. */
export function forbidCoreDumps(): void {
  native.forbidCoreDumps();
}

/** 127.0.0.0/8 or ::1, as an address: a name could mean anything. */
export function isLoopback(host: string): boolean {
  return host === '::1' || (isIPv4(host) && host.startsWith('127.'));
}

/** What `status` says of the control connection; the bulk connections are made the same way. */
export interface LinkStatus {
  encryption: 'plain' | 'tls' | 'kernel-tls';
  /** "TLSv1.3, TLS_AES_128_GCM_SHA256"; null without TLS, as what follows. */
  cipher: string | null;
  /** What the peer's certificate is for. */
  peer: string | null;
  fingerprint: string | null;
  /** Until when it is valid, as ISO time: a session that stands goes on, the next one won't begin. */
  expires: string | null;
}

export function linkStatus(tls: TlsInfo | null): LinkStatus {
  if (!tls) return { encryption: 'plain', cipher: null, peer: null, fingerprint: null, expires: null };
  const { cipher, kernelSends, peer, fingerprint, expiresS } = tls;
  const encryption = kernelSends ? 'kernel-tls' : 'tls';
  return { encryption, cipher, peer, fingerprint, expires: isoTime(expiresS) };
}
