/** Who may talk: a pair of agents over TLS, and everybody else refused with the reason on both sides. */
import { execFileSync, spawn } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createConnection, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { hostCredentials, trustCertificate } from '../../src/agent/credential-files.ts';
import type { LinkStatus } from '../../src/agent/link-security.ts';
import { native } from '../../src/native/binding.ts';
import type { TestAgent } from '../../src/testbed/agents.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { pairedFolders } from '../../src/testbed/credentials.ts';
import type { TestVm } from '../../src/testbed/vm.ts';
import { waitFor } from '../../src/testbed/wait.ts';
import { colo, MAIN } from './support/cli.ts';
import {
  type GuestOptions,
  moreCheckpoints,
  startPrimary,
  startSecondary,
  startVm,
  VM_NAME,
  waitBooted,
} from './support/protection.ts';

const GUEST: GuestOptions = { guest: 'baremetal' };

const cleanup = new Cleanup();
let folder: string;
let primaryVm: TestVm;
let standbyVm: TestVm;
beforeAll(async () => {
  folder = mkdtempSync(path.join(tmpdir(), 'colo-tls-test-'));
  cleanup.add(() => rmSync(folder, { recursive: true, force: true }));
  primaryVm = await startVm(cleanup, 'primary', GUEST, false);
  await waitBooted(primaryVm, GUEST);
  standbyVm = await startVm(cleanup, 'standby', GUEST, true);
});
afterAll(() => cleanup.run());

/** The agents of one test, on the two VMs that all tests share. */
async function withAgents(
  secondaryArgs: string[],
  primaryArgs: string[],
  body: (agents: { primary: TestAgent; secondary: TestAgent }) => Promise<void>,
  via: (listen: string) => Promise<string> = async (listen) => listen,
): Promise<void> {
  const agents = new Cleanup();
  try {
    const { agent: secondary, listen } = await startSecondary(agents, standbyVm, secondaryArgs);
    const primary = await startPrimary(agents, primaryVm, await via(listen), primaryArgs);
    await body({ primary, secondary });
    await primary.command('stop');
    await primary.exited;
  } finally {
    await agents.run();
  }
}

/** A folder of credentials of its own; the secondary of pairedFolders() is trusted in it. */
function credentialsIn(name: string, vms: string[], fromDays: number, untilDays: number): string {
  const made = path.join(folder, name);
  mkdirSync(made);
  const day = (days: number) => Math.floor(Date.now() / 1000) + days * 86_400;
  const { key, certificate } = native.makeCertificate({
    commonName: name,
    vms,
    validFromS: day(fromDays),
    validUntilS: day(untilDays),
  });
  writeFileSync(path.join(made, 'key.pem'), key, { mode: 0o600 });
  writeFileSync(path.join(made, 'certificate.pem'), certificate);
  trustCertificate(made, certificateOf(pairedFolders().secondary));
  return made;
}

function certificateOf(host: string): X509Certificate {
  return new X509Certificate(hostCredentials(host, null).certificate);
}

test('a pair talks TLS 1.3 on all connections, and nothing of it can be read on the way', async () => {
  const seen: Buffer[] = [];
  const wiretap = async (listen: string): Promise<string> => {
    const [host = '', port] = listen.split(':');
    const server = createServer((near) => {
      const far = createConnection({ host, port: Number(port) });
      near.on('data', (chunk: Buffer) => seen.push(chunk));
      near.pipe(far).pipe(near);
      near.on('error', () => far.destroy());
      far.on('error', () => near.destroy());
    });
    cleanup.add(() => void server.close());
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    return `127.0.0.1:${(server.address() as { port: number }).port}`;
  };
  const check = async ({ primary, secondary }: { primary: TestAgent; secondary: TestAgent }) => {
    await moreCheckpoints(primary, 3);
    const link = (await primary.status())['link'] as LinkStatus;
    expect(link).toMatchObject({ cipher: 'TLSv1.3, TLS_AES_128_GCM_SHA256', peer: 'every VM' });
    expect(link.encryption).toMatch(/^(tls|kernel-tls)$/);
    expect(link.fingerprint).toBe(hostCredentials(pairedFolders().secondary, null).fingerprint);
    expect((await secondary.status())['link']).toMatchObject({
      fingerprint: hostCredentials(pairedFolders().primary, null).fingerprint,
    });
    expect((await colo('status', '--control', primary.controlPath)).stdout).toMatch(/link +TLSv1\.3/);
  };
  await withAgents([], ['--connections', '2'], check, wiretap);
  const bytes = Buffer.concat(seen).toString('latin1');
  expect(bytes.length).toBeGreaterThan(10_000);
  for (const plain of ['COLOCTL1', 'COLOBLK1', 'COLOHBT1', 'CBLK', 'CHBT', 'QEVM'])
    expect(bytes).not.toContain(plain);
});

/** The primary stays EXPOSED with a reason, the secondary says in its log why, and the VM runs on. */
async function expectRefusal(
  secondaryArgs: string[],
  primaryArgs: string[],
  told: RegExp,
  logged: RegExp,
): Promise<void> {
  await withAgents(secondaryArgs, primaryArgs, async ({ primary, secondary }) => {
    const { state } = await primary.waitStatus('a refusal', 30_000, ({ reason }) => told.test(reason));
    expect(state).toBe('EXPOSED');
    await waitFor('a word of it in the log', 30_000, () => logged.test(secondary.log()));
    expect(await primary.status()).toMatchObject({ link: null, pauseMs: { last: null } });
  });
}

test('who is not paired is refused', async () => {
  const stranger = credentialsIn('stranger', ['*'], -1, 1);
  await expectRefusal([], ['--tls', stranger], /doesn't trust our certificate/, /is self-signed and not in/);
});

test('an expired certificate is refused', async () => {
  const expired = credentialsIn('expired', ['*'], -3, -1);
  const { secondary } = pairedFolders();
  const knows = path.join(folder, 'knows-expired');
  mkdirSync(knows);
  for (const file of ['key.pem', 'certificate.pem'])
    copyFileSync(path.join(secondary, file), path.join(knows, file));
  trustCertificate(knows, certificateOf(expired));
  await expectRefusal(
    ['--tls', knows],
    ['--tls', expired],
    /our certificate has expired/,
    /certificate \(every VM\) has expired: \d{4}-/,
  );
});

test('plain text and TLS are told apart on both sides', async () => {
  await expectRefusal(
    [],
    ['--insecure'],
    /the peer speaks TLS, and this agent was started with --insecure/,
    /the peer doesn't speak TLS/,
  );
  await expectRefusal(
    ['--insecure'],
    [],
    /the peer doesn't speak TLS: was it started with --insecure\?/,
    /the peer speaks TLS, and this agent was started with --insecure/,
  );
});

test('with a CA of their own, by the commands of docs/security.md; a certificate for another VM is refused', async () => {
  const ca = path.join(folder, 'ca');
  const openssl = (...args: string[]) => execFileSync('openssl', args, { cwd: ca, stdio: 'pipe' });
  mkdirSync(ca);
  const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-noenc'];
  openssl(
    'req',
    '-x509',
    ...newKey,
    '-keyout',
    'ca.key',
    '-out',
    'ca.pem',
    '-days',
    '3650',
    '-subj',
    '/CN=ca',
  );
  const issue = (name: string, names: string): string => {
    const host = path.join(ca, name);
    mkdirSync(host);
    openssl(
      ...[
        'req',
        '-x509',
        ...newKey,
        '-CA',
        'ca.pem',
        '-CAkey',
        'ca.key',
        '-days',
        '365',
        '-subj',
        `/CN=${name}`,
      ],
      ...['-addext', `subjectAltName=${names}`, '-addext', 'basicConstraints=critical,CA:FALSE'],
      ...['-keyout', path.join(name, 'key.pem'), '-out', path.join(name, 'certificate.pem')],
    );
    copyFileSync(path.join(ca, 'ca.pem'), path.join(host, 'trusted.pem'));
    return host;
  };
  const a = issue('a', `URI:colo-agent://vm/${VM_NAME},DNS:a.example`);
  const b = issue('b', `URI:colo-agent://vm/${VM_NAME},DNS:b.example`);
  const other = issue('other', 'URI:colo-agent://vm/other');
  await withAgents(['--tls', b], ['--tls', a, '--peer-name', 'b.example'], async ({ primary }) => {
    await moreCheckpoints(primary, 2);
  });
  await expectRefusal(
    ['--tls', b],
    ['--tls', other],
    /our certificate is for another VM or host/,
    new RegExp(`is for VM other, not for the VM ${VM_NAME}`),
  );
  await withAgents(['--tls', b], ['--tls', a, '--peer-name', 'c.example'], async ({ primary }) => {
    await primary.waitStatus('a refusal', 30_000, ({ reason }) =>
      /is for VM .*, host b\.example, not for the host c\.example/.test(reason),
    );
  });
});

test('`colo-agent pair` on two hosts, and nobody can use the code again', async () => {
  const [a, b, late] = ['pair-a', 'pair-b', 'pair-late'].map((name) => path.join(folder, name)) as [
    string,
    string,
    string,
  ];
  const offer = spawn(process.execPath, [
    ...[MAIN, 'pair', '--listen', '127.0.0.1:0', '--tls', a, '--vm', VM_NAME],
  ]);
  cleanup.add(() => void offer.kill('SIGKILL'));
  const ended = once(offer, 'exit');
  const [line] = await once(offer.stdout, 'data');
  const join = async (code: string, tls: string) => {
    const child = spawn(process.execPath, [MAIN, 'pair', '--join', '--tls', tls]);
    let stderr = '';
    child.stderr.on('data', (chunk) => {
      stderr += chunk;
    });
    child.stdin.end(code);
    const [status] = await once(child, 'close');
    return { status, stderr };
  };
  expect(await join('colo1-nonsense\n', late)).toMatchObject({
    status: 69,
    stderr: expect.stringMatching(/not a pairing code/),
  });
  expect(await join(String(line), b)).toMatchObject({
    status: 0,
    stderr: expect.stringMatching(/^Paired\./m),
  });
  expect(await ended).toEqual([0, null]);
  expect(await join(String(line), late)).toMatchObject({
    status: 69,
    stderr: expect.stringMatching(/pairing with 127/),
  });
  expect(statSync(path.join(a, 'key.pem')).mode & 0o777).toBe(0o600);
  expect(statSync(a).mode & 0o777).toBe(0o700);
  await withAgents(['--tls', b], ['--tls', a], async ({ primary }) => {
    await moreCheckpoints(primary, 2);
    expect((await primary.status())['link']).toMatchObject({ peer: `VM ${VM_NAME}` });
  });
});
