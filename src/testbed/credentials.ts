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

/**
 * The two hosts' folders, for `--tls`. They trust each other for every VM, and themselves: an agent is given the folder of its command's name, and
 * after a take-over both ends of a link may have been started as the same.
 */
export function pairedFolders(): PairedFolders {
  made ??= makePair();
  return made;
}

function makePair(): PairedFolders {
  const folder = mkdtempSync(path.join(tmpdir(), 'colo-tls-'));
  process.once('exit', () => rmSync(folder, { recursive: true, force: true }));
  const primary = hostCredentials(path.join(folder, 'primary'), null);
  const secondary = hostCredentials(path.join(folder, 'secondary'), null);
  for (const host of [primary, secondary])
    for (const { certificate } of [primary, secondary])
      trustCertificate(host.folder, new X509Certificate(certificate));
  return { primary: primary.folder, secondary: secondary.folder };
}
