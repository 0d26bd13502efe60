import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { vmsOf } from '../../agent/credential-files.ts';
import { CREDENTIAL_FILES, EXPIRES_SOON_S, isoTime, plainTextObjection } from '../../agent/link-security.ts';
import { type Check, fail, ok, warn } from '../finding.ts';

const AGAIN = "pair the hosts again, or renew it, and restart the agents; look at both hosts' clocks";

const PAIR = 'leave --insecure out and run `colo-agent pair` on both hosts (docs/security.md)';

export const keys: Check = {
  name: 'keys',
  title: "this host's key and certificates",
  fault: 'configuration',
  remedy: 'mend that file, or run `colo-agent pair` on both hosts (docs/security.md)',
  async run(patient) {
    const { tls, vm, peer, listen } = patient.options;
    if (tls === null) {
      const hosts = [peer, listen].flatMap((each) => each?.host ?? []);
      const objection = plainTextObjection(hosts);
      return objection === null ? warn('plain text (--insecure)', PAIR) : fail(objection, PAIR);
    }
    const credentials = await patient.credentials();
    const own = credentials?.own();
    const certificate = new X509Certificate(
      readFileSync(path.join(tls.folder, CREDENTIAL_FILES.certificate)),
    );
    const expiresS = own?.expiresS ?? 0;
    const found = `our certificate (${own?.names}) in ${tls.folder} is valid until ${isoTime(expiresS).slice(0, 10)}`;
    const nowS = Date.now() / 1000;
    if (expiresS < nowS)
      return fail(
        `our certificate (${own?.names}) in ${tls.folder} has expired: ${isoTime(expiresS)}`,
        AGAIN,
      );
    if (Date.parse(certificate.validFrom) / 1000 > nowS)
      return fail(`our certificate in ${tls.folder} is not valid before ${certificate.validFrom}`, AGAIN);
    const vms = vmsOf(certificate);
    if (vm !== null && vms.length > 0 && !vms.includes('*') && !vms.includes(vm))
      return fail(
        `our certificate is for ${own?.names}, not for the VM ${vm}`,
        'pair the hosts for this VM, too',
      );
    return expiresS - nowS < EXPIRES_SOON_S ? warn(found, AGAIN) : ok(found);
  },
};
