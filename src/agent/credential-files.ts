/** The folder of a host's credentials, as `colo-agent pair` makes and extends it. */
import { createHash, X509Certificate } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import path from 'node:path';
import { native } from '../native/binding.ts';
import { CREDENTIAL_FILES } from './link-security.ts';

export interface HostCredentials {
  folder: string;
  key: string;
  certificate: string;
  /** SHA-256 of the certificate, hex digits. */
  fingerprint: string;
  /** For which VMs it is: names, or '*'. */
  vms: string[];
}

const VM_URI = 'URI:colo-agent://vm/';
const VALID_S = 10 * 365 * 86_400;
/** The other host's clock may be behind. */
const VALID_BEFORE_S = 86_400;

/**
 * This host's key and certificate, made when the folder has none yet. `vms` null: those of the certificate that is there, or all. Throws
 * when the certificate that is there is for other VMs.
 */
export function hostCredentials(folder: string, vms: readonly string[] | null): HostCredentials {
  const certificateFile = path.join(folder, CREDENTIAL_FILES.certificate);
  if (!existsSync(certificateFile)) makeCredentials(folder, vms ?? ['*']);
  const certificate = readFileSync(certificateFile, 'utf8');
  const parsed = new X509Certificate(certificate);
  const found = vmsOf(parsed);
  if (vms && [...vms].sort().join() !== [...found].sort().join()) {
    throw new Error(
      `the certificate in ${folder} is for ${found.join(', ')}, not for ${vms.join(', ')}: choose another folder with --tls, or leave --vm out`,
    );
  }
  return {
    folder,
    key: readFileSync(path.join(folder, CREDENTIAL_FILES.key), 'utf8'),
    certificate,
    fingerprint: createHash('sha256').update(parsed.raw).digest('hex'),
    vms: found,
  };
}

function makeCredentials(folder: string, vms: readonly string[]): void {
  const nowS = Math.floor(Date.now() / 1000);
  const made = native.makeCertificate({
    commonName: `colo-agent ${hostname()}`.slice(0, 64),
    vms: [...vms],
    validFromS: nowS - VALID_BEFORE_S,
    validUntilS: nowS + VALID_S,
  });
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  replaceFile(path.join(folder, CREDENTIAL_FILES.key), made.key, 0o600);
  replaceFile(path.join(folder, CREDENTIAL_FILES.certificate), made.certificate, 0o644);
}

/** Adds it to those whom the agent believes, unless it is there. */
export function trustCertificate(folder: string, certificate: X509Certificate): void {
  const file = path.join(folder, CREDENTIAL_FILES.trusted);
  const trusted = existsSync(file) ? readFileSync(file, 'utf8') : '';
  const pem = certificate.toString();
  if (trusted.includes(pem)) return;
  // A person's editor may have left the last line without its end.
  const separator = trusted === '' || trusted.endsWith('\n') ? '' : '\n';
  replaceFile(file, trusted + separator + pem, 0o644);
}

/** The VMs that a certificate names, or '*'. */
export function vmsOf(certificate: X509Certificate): string[] {
  return (certificate.subjectAltName ?? '')
    .split(', ')
    .filter((name) => name.startsWith(VM_URI))
    .map((name) => name.slice(VM_URI.length));
}

/** An agent that reads meanwhile finds the old file or the new one, and nobody a key that is readable for a moment. */
function replaceFile(file: string, content: string, mode: number): void {
  const preparing = `${file}.${process.pid}`;
  rmSync(preparing, { force: true });
  writeFileSync(preparing, content, { mode, flag: 'wx' });
  renameSync(preparing, file);
}
