/** virsh as a child process: whatever libvirt the host has, and whichever LIBVIRT_DEFAULT_URI says. */
import { execFile } from 'node:child_process';
import { DomainUnavailableError, LibvirtError } from './libvirt-error.ts';

/** libvirtd answers such questions from memory; one that doesn't answer hangs. */
const ANSWER_MS_MAX = 30_000;

/** What a read-only command says about a domain. Throws LibvirtError with virsh's own words. */
export function virsh(command: 'dumpxml' | 'domstate' | 'dominfo', domain: string): Promise<string> {
  // No shell; and `=`, so that a name that begins with a dash is no option. Words, not translations of them.
  const args = ['--quiet', '--readonly', command, `--domain=${domain}`];
  const env = { ...process.env, LC_ALL: 'C' };
  return new Promise((resolve, reject) => {
    execFile('virsh', args, { env, timeout: ANSWER_MS_MAX, maxBuffer: 16 << 20 }, (error, stdout, stderr) => {
      if (error === null) resolve(stdout);
      else reject(failure(command, domain, error, stderr));
    });
  });
}

function failure(
  command: string,
  domain: string,
  error: Error & { code?: unknown; killed?: boolean },
  stderr: string,
): LibvirtError {
  if (error.code === 'ENOENT') {
    return new LibvirtError(
      "--libvirt needs virsh, which isn't installed (Debian: libvirt-clients, Fedora: libvirt-client); or give --qmp SOCKET",
    );
  }
  const words = stderr
    .split('\n')
    .map((line) => line.replace(/^error: /, '').trim())
    .filter((line) => line !== '')
    .join('; ');
  const what = error.killed
    ? `libvirt didn't answer within ${ANSWER_MS_MAX / 1000} s`
    : words || error.message;
  return new DomainUnavailableError(
    `virsh ${command} ${domain}: ${what}. 'virsh list --all' shows the domains; LIBVIRT_DEFAULT_URI says which libvirt is asked`,
  );
}
