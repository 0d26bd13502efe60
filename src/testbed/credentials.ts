/** Real keys and certificates for the agents of a run: what `colo-agent pair` leaves on two hosts, made once and gone with the process. */
import { X509Certificate } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { hostCredentials, trustCertificate } from '../agent/credential-files.ts';

export interface PairedFolders {
  primary: string;
  secondary: string;
}

let made: PairedFolders | null = null;

/** The two hosts' folders, for `--tls`. They trust each other for every VM. */
export function pairedFolders(): PairedFolders {
  made ??= makePair();
  return made;
}

function makePair(): PairedFolders {
  const folder = mkdtempSync(path.join(tmpdir(), 'colo-tls-'));
  process.once('exit', () => rmSync(folder, { recursive: true, force: true }));
  const primary = hostCredentials(path.join(folder, 'primary'), null);
  const secondary = hostCredentials(path.join(folder, 'secondary'), null);
  trustCertificate(primary.folder, new X509Certificate(secondary.certificate));
  trustCertificate(secondary.folder, new X509Certificate(primary.certificate));
  return { primary: primary.folder, secondary: secondary.folder };
}
