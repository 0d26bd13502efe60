/**
 * A libvirtd of the test's own: in the test's network namespace, with its own /etc, /run and /var folders in a mount namespace. Nothing of the host's is touched, and no
 * service manager is needed.
 */
import {
  appendFileSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { encoded } from '../../../src/libvirt/xml.ts';
import { Child, run } from '../../../src/testbed/child.ts';
import { buildGuest } from '../../../src/testbed/guest.ts';
import type { TestNetwork } from '../../../src/testbed/network.ts';
import { waitFor } from '../../../src/testbed/wait.ts';
import { isAlive } from './planned-standby.ts';

const FOLDERS = {
  etc: '/etc/libvirt',
  run: '/run/libvirt',
  lib: '/var/lib/libvirt',
  log: '/var/log/libvirt',
  cache: '/var/cache/libvirt',
};

/** No virtlogd, no cgroups, no mount namespaces of its own, no users: what a container may not have. */
const QEMU_CONF = `
stdio_handler = "file"
security_driver = "none"
user = "root"
group = "root"
cgroup_controllers = []
namespaces = []
dynamic_ownership = 0
remember_owner = 0
`;

export interface DomainOptions {
  name: string;
  tap: string;
  disk: string;
  append: string;
  /** Default: with a second monitor. */
  monitor?: boolean;
}

export class TestLibvirt {
  readonly folder: string;
  readonly #child: Child;

  private constructor(child: Child, folder: string) {
    this.#child = child;
    this.folder = folder;
  }

  static async start(network: TestNetwork): Promise<TestLibvirt> {
    const folder = mkdtempSync(path.join(tmpdir(), 'colo-libvirt-'));
    const mounts = Object.entries(FOLDERS).map(([name, target]) => {
      mkdirSync(path.join(folder, name));
      return `mkdir -p ${target}; mount --bind ${path.join(folder, name)} ${target}`;
    });
    writeFileSync(path.join(folder, 'etc', 'qemu.conf'), QEMU_CONF);
    // libvirtd wants the user to exist whom it would run QEMU as.
    for (const [name, line] of [
      ['passwd', 'libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin\n'],
      ['group', 'libvirt-qemu:x:64055:\n'],
    ] as const) {
      const copy = path.join(folder, name);
      copyFileSync(`/etc/${name}`, copy);
      if (!readFileSync(copy, 'utf8').includes('libvirt-qemu:')) appendFileSync(copy, line);
      mounts.push(`mount --bind ${copy} /etc/${name}`);
    }
    const conf = path.join(folder, 'libvirtd.conf');
    writeFileSync(conf, `auth_unix_rw = "none"\nunix_sock_dir = "${path.join(folder, 'run')}"\n`);
    const scene = `${mounts.join('; ')}; exec "$@"`;
    const own = ['unshare', '--mount', '--propagation', 'private', 'sh', '-ec', scene, 'sh'];
    const child = await Child.start(['libvirtd', '-f', conf, '-p', path.join(folder, 'pid')], {
      stderrPath: path.join(folder, 'stderr'),
      prefix: [...network.prefix, ...own],
    });
    const libvirt = new TestLibvirt(child, folder);
    try {
      await waitFor('answer of libvirtd', 60_000, () => {
        child.assertRunning();
        return libvirt.virsh('version').then(
          () => true,
          () => false,
        );
      });
    } catch (error) {
      await libvirt.destroy();
      throw error;
    }
    return libvirt;
  }

  /** What LIBVIRT_DEFAULT_URI must be. */
  get uri(): string {
    return `qemu+unix:///system?socket=${path.join(this.folder, 'run', 'libvirt-sock')}`;
  }

  /** Rejects with virsh's own words. */
  virsh(...args: string[]): Promise<string> {
    return run('virsh', '--quiet', '--connect', this.uri, ...args);
  }

  /** Makes a domain of the test's Linux guest; it isn't started. */
  async define(options: DomainOptions): Promise<void> {
    const file = path.join(this.folder, `${options.name}.xml`);
    writeFileSync(file, await this.#domainXml(options));
    await this.virsh('define', file);
  }

  qmpPath(domain: string): string {
    return path.join(this.folder, `${domain}.monitor`);
  }

  /** What the guest has written to its serial port so far. */
  console(domain: string): string {
    return readFileSync(path.join(this.folder, `${domain}.console`), 'latin1');
  }

  pid(domain: string): number {
    return Number(readFileSync(path.join(this.folder, 'run', 'qemu', `${domain}.pid`), 'utf8'));
  }

  /** libvirt's QEMUs outlive it, so they are ended first. */
  async destroy(): Promise<void> {
    if (this.#child.running) await this.#endDomains();
    await this.#child.stop();
    rmSync(this.folder, { recursive: true, force: true });
  }

  async #endDomains(): Promise<void> {
    const names = await this.virsh('list', '--name').catch(() => '');
    for (const name of names.split('\n').filter((line) => line !== '')) {
      const pid = this.pid(name);
      await this.virsh('destroy', name).catch(() => process.kill(pid, 'SIGKILL'));
      await waitFor(`end of ${name}`, 30_000, () => !isAlive(pid));
    }
  }

  async #domainXml({ name, tap, disk, append, monitor = true }: DomainOptions): Promise<string> {
    const { kernel, initrdDisks } = await buildGuest();
    const qemu = process.env['COLO_QEMU'] ?? 'qemu-system-x86_64';
    const emulator = (await run('sh', '-c', 'command -v "$1"', 'sh', qemu)).trim();
    const commandLine = encoded(`console=ttyS0 quiet no_timer_check colo.disks=vda ${append}`);
    const second = `
  <qemu:commandline>
    <qemu:arg value='-qmp'/>
    <qemu:arg value='unix:${this.qmpPath(name)},server=on,wait=off'/>
  </qemu:commandline>`;
    return `<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>${name}</name>
  <memory unit='MiB'>256</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>${kernel}</kernel>
    <initrd>${initrdDisks}</initrd>
    <cmdline>${commandLine}</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <emulator>${emulator}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source file='${disk}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='ethernet'>
      <mac address='52:54:00:77:00:02'/>
      <target dev='${tap}' managed='no'/>
      <model type='virtio'/>
      <driver name='qemu'/>
    </interface>
    <serial type='file'><source path='${path.join(this.folder, `${name}.console`)}'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <graphics type='vnc' autoport='yes'/>
    <memballoon model='virtio'/>
  </devices>${monitor ? second : ''}
</domain>
`;
  }
}
