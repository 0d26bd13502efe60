/** A real etcd cluster on this machine's loopback, member by member, and the certificates for one with TLS. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Child, run } from './child.ts';
import { waitFor } from './wait.ts';

const READY_MS = 60_000;

/** For a server that only its own host reaches. */
const FETCH = 'fetch(process.argv[1]).then(({ ok }) => process.exit(ok ? 0 : 1), () => process.exit(1))';

export interface EtcdOptions {
  /** 1 when it isn't said. */
  members?: number;
  /** Serve clients over TLS, and want a certificate from each. */
  tls?: TestCertificates;
  /** Run on one of hosts.ts, and serve all its addresses. */
  prefix?: string[];
}

interface Member {
  name: string;
  clientUrl: string;
  healthUrl: string;
  command: string[];
  child: Child;
}

export class TestEtcd {
  readonly #folder: string;
  readonly #members: Member[] = [];
  readonly #options: EtcdOptions;

  private constructor(folder: string, options: EtcdOptions) {
    this.#folder = folder;
    this.#options = options;
  }

  /** Resolves when every member answers. */
  static async start(options: EtcdOptions = {}): Promise<TestEtcd> {
    const etcd = new TestEtcd(mkdtempSync(path.join(tmpdir(), 'colo-etcd-')), options);
    try {
      await etcd.#startMembers(options.members ?? 1);
    } catch (error) {
      await etcd.destroy();
      throw error;
    }
    return etcd;
  }

  /** Of each member, for --witness; `address`: where its host is reached. */
  endpointsAt(address: string): string[] {
    return this.#members.map(({ clientUrl }) => clientUrl.replace('127.0.0.1', address));
  }

  get endpoints(): string[] {
    return this.endpointsAt('127.0.0.1');
  }

  async #startMembers(count: number): Promise<void> {
    const ports = await freePorts(3 * count);
    const peerUrl = (index: number) => `http://127.0.0.1:${ports[3 * index]}`;
    const cluster = Array.from({ length: count }, (_, index) => `m${index}=${peerUrl(index)}`).join(',');
    for (let index = 0; index < count; index++) {
      const scheme = this.#options.tls ? 'https' : 'http';
      const clientUrl = `${scheme}://127.0.0.1:${ports[3 * index + 1]}`;
      const healthUrl = `http://127.0.0.1:${ports[3 * index + 2]}`;
      const command = this.#command(`m${index}`, peerUrl(index), clientUrl, healthUrl, cluster);
      const child = await this.#spawn(`m${index}`, command);
      this.#members.push({ name: `m${index}`, clientUrl, healthUrl, command, child });
    }
    await Promise.all(this.#members.map((member) => this.#ready(member)));
  }

  #command(name: string, peerUrl: string, clientUrl: string, healthUrl: string, cluster: string): string[] {
    const { tls, prefix } = this.#options;
    const served = prefix ? clientUrl.replace('127.0.0.1', '0.0.0.0') : clientUrl;
    return [
      ...(prefix ?? []),
      'etcd',
      ...['--name', name, '--data-dir', path.join(this.#folder, name)],
      ...['--listen-peer-urls', peerUrl, '--initial-advertise-peer-urls', peerUrl],
      ...['--listen-client-urls', served, '--advertise-client-urls', clientUrl],
      ...['--listen-metrics-urls', healthUrl, '--initial-cluster', cluster, '--pre-vote=true'],
      // Shared, slow machines: a member that gets no processor for a while must not lose its office at once.
      ...['--heartbeat-interval', '100', '--election-timeout', '1000', '--log-level', 'warn'],
      ...(tls
        ? ['--cert-file', tls.serverCert, '--key-file', tls.serverKey, '--trusted-ca-file', tls.ca]
        : []),
      ...(tls ? ['--client-cert-auth'] : []),
    ];
  }

  #spawn(name: string, command: string[]): Promise<Child> {
    return Child.start(command, { stderrPath: path.join(this.#folder, `${name}.log`) });
  }

  async #ready({ name, healthUrl, child }: Member): Promise<void> {
    await waitFor(`health of etcd ${name}`, READY_MS, async () => {
      child.assertRunning();
      return await this.#isHealthy(`${healthUrl}/health`);
    });
  }

  async #isHealthy(url: string): Promise<boolean> {
    const { prefix } = this.#options;
    if (!prefix) return (await fetch(url).catch(() => null))?.ok === true;
    const [file = '', ...args] = [...prefix, process.execPath, '-e', FETCH];
    return await run(file, ...args, url).then(
      () => true,
      () => false,
    );
  }

  /** SIGKILL, or SIGSTOP to cut a member off: connections to it are taken and never answered. SIGCONT brings it back. */
  kill(index: number, signal: NodeJS.Signals = 'SIGKILL'): void {
    this.#members[index]?.child.kill(signal);
  }

  /** A member that was killed comes back with what it had. */
  async restart(index: number): Promise<void> {
    const member = this.#members[index] as Member;
    await member.child.stop();
    member.child = await this.#spawn(member.name, member.command);
    await this.#ready(member);
  }

  async destroy(): Promise<void> {
    await Promise.all(this.#members.map(({ child }) => child.stop()));
    rmSync(this.#folder, { recursive: true, force: true });
  }
}

/** Ports that were free a moment ago, all different. */
async function freePorts(count: number): Promise<number[]> {
  const servers = await Promise.all(
    Array.from({ length: count }, async () => {
      const server = createServer();
      await new Promise<void>((resolve, reject) => {
        server.once('error', reject);
        server.listen(0, '127.0.0.1', resolve);
      });
      return server;
    }),
  );
  const ports = servers.map((server) => {
    const address = server.address();
    return typeof address === 'object' && address ? address.port : 0;
  });
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  return ports;
}

/** PEM files, by openssl: a CA, a server's certificate for 127.0.0.1 and a client's; and a CA that has signed nothing. */
export class TestCertificates {
  readonly ca: string;
  readonly otherCa: string;
  readonly serverCert: string;
  readonly serverKey: string;
  readonly clientCert: string;
  readonly clientKey: string;
  readonly #folder: string;

  private constructor(folder: string) {
    const file = (name: string) => path.join(folder, name);
    this.#folder = folder;
    this.ca = file('ca.pem');
    this.otherCa = file('other-ca.pem');
    this.serverCert = file('server.pem');
    this.serverKey = file('server.key');
    this.clientCert = file('client.pem');
    this.clientKey = file('client.key');
  }

  static async make(): Promise<TestCertificates> {
    const certificates = new TestCertificates(mkdtempSync(path.join(tmpdir(), 'colo-certs-')));
    await certificates.#makeCa('ca');
    await certificates.#makeCa('other-ca');
    await certificates.#sign(
      'server',
      'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n',
    );
    await certificates.#sign('client', 'extendedKeyUsage=clientAuth\n');
    return certificates;
  }

  async #makeCa(name: string): Promise<void> {
    const [cert, key] = [path.join(this.#folder, `${name}.pem`), path.join(this.#folder, `${name}.key`)];
    const subject = ['-subj', `/CN=colo test ${name}`, '-days', '2'];
    await run('openssl', 'req', '-x509', ...NEW_KEY, ...subject, '-keyout', key, '-out', cert);
  }

  async #sign(name: string, extensions: string): Promise<void> {
    const file = (suffix: string) => path.join(this.#folder, `${name}.${suffix}`);
    writeFileSync(file('ext'), extensions);
    await run(
      'openssl',
      'req',
      ...NEW_KEY,
      '-subj',
      `/CN=${name}`,
      '-keyout',
      file('key'),
      '-out',
      file('csr'),
    );
    const signer = ['-CA', this.ca, '-CAkey', path.join(this.#folder, 'ca.key'), '-CAcreateserial'];
    const request = ['-in', file('csr'), '-extfile', file('ext'), '-days', '2', '-out', file('pem')];
    await run('openssl', 'x509', '-req', ...signer, ...request);
  }

  destroy(): void {
    rmSync(this.#folder, { recursive: true, force: true });
  }
}

const NEW_KEY = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
