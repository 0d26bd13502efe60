/** A real cluster of two nodes: corosync and Pacemaker of the distribution, each node in namespaces of its own on one of TestHosts. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Child, run, tail } from '../../src/testbed/child.ts';
import type { TestHosts } from '../../src/testbed/hosts.ts';
import { waitFor } from '../../src/testbed/wait.ts';
import { AGENT } from '../e2e/support/ocf.ts';

export type NodeName = 'north' | 'south';
export const NODES: readonly NodeName[] = ['north', 'south'];

/** What Pacemaker believes of an instance. */
export type Role = 'Promoted' | 'Unpromoted' | 'Stopped';

const SCRIPT = path.join(import.meta.dirname, 'node.sh');
const READY_MS = 120_000;

export class ClusterNode {
  readonly #name: NodeName;
  readonly #log: string;
  readonly #child: Child;

  private constructor(name: NodeName, log: string, child: Child) {
    this.#name = name;
    this.#log = log;
    this.#child = child;
  }

  static async start(
    name: NodeName,
    folder: string,
    control: string,
    prefix: readonly string[],
  ): Promise<ClusterNode> {
    const namespaces = ['--mount', '--pid', '--uts', '--ipc', '--mount-proc', '--fork', '--kill-child'];
    const command = ['unshare', ...namespaces, 'sh', SCRIPT, name, folder, AGENT, control];
    const log = path.join(folder, `${name}-output.log`);
    const child = await Child.start(command, { stderrPath: log, prefix });
    return new ClusterNode(name, path.join(folder, `${name}-pacemaker.log`), child);
  }

  /** Runs one of Pacemaker's commands there. */
  async run(...command: string[]): Promise<string> {
    this.#child.assertRunning();
    const [init = ''] = readFileSync(
      `/proc/${this.#child.pid}/task/${this.#child.pid}/children`,
      'utf8',
    ).split(' ');
    return run('nsenter', '-t', init, '-a', ...command);
  }

  /** Node by node, what Pacemaker there believes of the resource; null while it knows nothing. */
  async view(resource: string): Promise<Record<NodeName, Role> | null> {
    const xml = await this.run('crm_mon', '-1', '--output-as=xml', '--inactive').catch(() => null);
    if (xml === null) return null;
    const roles: Record<NodeName, Role> = { north: 'Stopped', south: 'Stopped' };
    const instances = xml.matchAll(
      new RegExp(`<resource id="${resource}"[^>]* role="(\\w+)"[^>]*>\\s*<node name="(\\w+)"`, 'g'),
    );
    for (const [, role, node] of instances) roles[node as NodeName] = role as Role;
    return roles;
  }

  /** Whether Pacemaker leaves an instance of the resource alone until a person cleans up. */
  async isBlocked(resource: string): Promise<boolean> {
    const xml = await this.run('crm_mon', '-1', '--output-as=xml');
    return new RegExp(`<resource id="${resource}"[^>]* blocked="true"`).test(xml);
  }

  logTail(): string {
    return `${this.#name}: ${tail(this.#log, 3000)}`;
  }

  /** As a host that loses its power. */
  async kill(): Promise<void> {
    await this.#child.stop();
  }
}

export class Cluster {
  readonly #folder: string;
  readonly #nodes = new Map<NodeName, ClusterNode>();

  private constructor(folder: string) {
    this.#folder = folder;
  }

  /** `controls`: the sockets of the hosts' daemons. Resolves when each node knows the other. */
  static async start(hosts: TestHosts, controls: Record<NodeName, string>): Promise<Cluster> {
    const cluster = new Cluster(mkdtempSync(path.join(tmpdir(), 'colo-cluster-')));
    try {
      mkdirSync(path.join(cluster.#folder, 'etc', 'uidgid.d'), { recursive: true });
      writeFileSync(path.join(cluster.#folder, 'etc', 'corosync.conf'), corosyncConfiguration(hosts));
      for (const name of NODES) await cluster.#start(name, controls[name], hosts.prefix(name));
      await cluster.#ready();
    } catch (error) {
      await cluster.destroy();
      throw error;
    }
    return cluster;
  }

  node(name: NodeName): ClusterNode {
    return this.#nodes.get(name) as ClusterNode;
  }

  async destroy(): Promise<void> {
    for (const node of this.#nodes.values()) await node.kill();
    rmSync(this.#folder, { recursive: true, force: true });
  }

  async #start(name: NodeName, control: string, prefix: readonly string[]): Promise<void> {
    this.#nodes.set(name, await ClusterNode.start(name, this.#folder, control, prefix));
  }

  async #ready(): Promise<void> {
    for (const node of this.#nodes.values())
      await waitFor(
        'cluster of two',
        READY_MS,
        async () => {
          const status = await node.run('crm_mon', '-1').catch(() => '');
          return status.includes('Online: [ north south ]');
        },
        () => `\n${node.logTail()}`,
      );
  }
}

function corosyncConfiguration(hosts: TestHosts): string {
  const node = (name: NodeName, other: NodeName, id: number) =>
    `  node {\n    name: ${name}\n    nodeid: ${id}\n    ring0_addr: ${hosts.address(name, other)}\n  }\n`;
  return `totem {
  version: 2
  cluster_name: colo
  transport: knet
  crypto_cipher: none
  crypto_hash: none
  token: 3000
}
nodelist {
${node('north', 'south', 1)}${node('south', 'north', 2)}}
quorum {
  provider: corosync_votequorum
  two_node: 1
  wait_for_all: 0
}
logging {
  to_syslog: no
  to_stderr: yes
}
system {
  sched_rr: no
  move_to_root_cgroup: no
}
`;
}
