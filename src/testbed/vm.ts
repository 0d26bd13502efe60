/** A stock QEMU with one of the test guests in it. */
import {
  chownSync,
  closeSync,
  copyFileSync,
  existsSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
} from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Child, type ExitStatus, run, tail } from './child.ts';
import { type DiskImage, type DiskOptions, diskArguments, guestNames, makeImages } from './disks.ts';
import { buildGuest, type GuestFiles } from './guest.ts';
import type { TestNetwork } from './network.ts';
import { waitFor } from './wait.ts';

/** `nobody` on Debian and on Fedora. */
export const NOBODY_UID = 65534;

const MONITOR_TIMEOUT_MS = 30_000;

/** Whether KVM can be used here; where it can't, a test says that it left it out. */
export function kvmOpens(): boolean {
  try {
    closeSync(openSync('/dev/kvm', 'r+'));
    return true;
  } catch (error) {
    if (['ENOENT', 'ENODEV', 'ENXIO', 'EACCES', 'EPERM'].includes(codeOf(error))) return false;
    throw error;
  }
}

function codeOf(error: unknown): string {
  return (error as NodeJS.ErrnoException).code ?? '';
}

export interface Nic {
  /** From TestNetwork.addTap. */
  tap: string;
  mac?: string;
  /** Default virtio-net-pci. */
  model?: string;
}

export interface VmOptions {
  name: string;
  guest: 'linux' | 'baremetal';
  /** Default COLO_QEMU from the environment, else qemu-system-x86_64. */
  qemu?: string;
  /** Default q35. */
  machine?: 'pc' | 'q35';
  /** Default tcg. */
  accel?: 'tcg' | 'kvm';
  /** Virtual CPUs, default 1. */
  smp?: number;
  /** Default 256 for Linux, 64 for bare metal. */
  memoryMiB?: number;
  /** RAM in a memfd that is shared, instead of QEMU's private memory. */
  sharedRam?: boolean;
  /** Default none. */
  vga?: 'none' | 'std';
  /** The namespace to run in; needed for `nics`. */
  network?: TestNetwork;
  nics?: Nic[];
  disks?: DiskOptions[];
  /** QEMU's own system call filter, with everything denied that it can deny. */
  sandbox?: boolean;
  /** Run QEMU as nobody; its taps must belong to NOBODY_UID. */
  nobody?: boolean;
  /** Start with the CPUs stopped: a standby's VM. */
  paused?: boolean;
  /** Added to the kernel command line; guest/init and guest/baremetal.c explain it. */
  append?: string;
  extraArgs?: string[];
}

/** Devices that a distribution lets everybody open and a container may not. */
const OPEN_DEVICES = [
  { device: '/dev/net/tun', name: 'tun' },
  { device: '/dev/kvm', name: 'kvm' },
];

export class TestVm {
  readonly name: string;
  readonly qmpPath: string;
  /** A second monitor for the test itself: QEMU serves one client on each, and the first is the agent's. */
  readonly testQmpPath: string;
  readonly exited: Promise<ExitStatus>;
  /** In the order of VmOptions.disks. */
  readonly disks: readonly DiskImage[];
  readonly #qemu: string;
  readonly #child: Child;
  readonly #directory: string;

  private constructor(options: VmOptions, disks: DiskImage[], child: Child, directory: string) {
    this.name = options.name;
    this.disks = disks;
    this.#qemu = qemuBinary(options);
    this.#child = child;
    this.#directory = directory;
    this.exited = child.exited;
    this.qmpPath = path.join(directory, 'qmp');
    this.testQmpPath = path.join(directory, 'qmp-test');
  }

  /** Resolves when the machine stands and QEMU answers QMP commands; the guest has only begun to boot. */
  static async start(options: VmOptions): Promise<TestVm> {
    const files = await buildGuest();
    const directory = mkdtempSync(path.join(tmpdir(), 'colo-vm-'));
    try {
      const disks = await makeImages(options.disks ?? [], directory);
      const prefix = [...(options.network?.prefix ?? [])];
      if (options.nobody) prefix.push(...(await prepareForNobody(directory, options, disks)));
      const command = qemuCommand(options, readable(files, directory, options), disks, directory);
      const child = await Child.start(command, {
        stderrPath: path.join(directory, 'stderr'),
        prefix,
        ...(options.nobody && { uid: NOBODY_UID }),
      });
      const vm = new TestVm(options, disks, child, directory);
      try {
        await vm.#waitForMonitor();
      } catch (error) {
        await child.stop();
        throw error;
      }
      return vm;
    } catch (error) {
      rmSync(directory, { recursive: true });
      throw error;
    }
  }

  get pid(): number {
    return this.#child.pid;
  }

  /** As `qemu-system-x86_64 --version` says it, e.g. 7.2.22. */
  async qemuVersion(): Promise<string> {
    const text = await run(this.#qemu, '--version');
    return /version (\S+)/.exec(text)?.[1] ?? text.trim();
  }

  get running(): boolean {
    return this.#child.running;
  }

  /** What the guest has written to its serial port so far. */
  console(): string {
    const file = path.join(this.#directory, 'console');
    return existsSync(file) ? readFileSync(file, 'latin1') : '';
  }

  /** Rejects, with the console's end, when `text` isn't on the console within the time or QEMU ends before. */
  async waitConsole(text: string | RegExp, timeoutMs: number): Promise<string> {
    const found = () => {
      const console = this.console();
      return typeof text === 'string' ? console.includes(text) && text : console.match(text)?.[0];
    };
    return waitFor(
      `${text} on the console of ${this.name}`,
      timeoutMs,
      () => {
        const hit = found();
        if (!hit) this.#child.assertRunning();
        return hit;
      },
      () => `; it ends with:\n${this.console().slice(-1000)}`,
    );
  }

  /** What QEMU itself complained about. */
  stderr(): string {
    return tail(path.join(this.#directory, 'stderr'), 1 << 20);
  }

  kill(signal: NodeJS.Signals = 'SIGKILL'): void {
    this.#child.kill(signal);
  }

  /** Any number of times. Rejects, the first time, when QEMU had crashed before: whatever an agent does to it, that it must survive. */
  async destroy(): Promise<void> {
    await this.#child.stop();
    if (!existsSync(this.#directory)) return;
    const { code, signal } = await this.exited;
    const crashed = signal === null ? code !== 0 : !['SIGKILL', 'SIGTERM'].includes(signal);
    const complaint = crashed
      ? `QEMU (${this.name}) ended by itself: ${signal ?? `status ${code}`}; ${this.stderr()}`
      : null;
    rmSync(this.#directory, { recursive: true, force: true });
    if (complaint !== null) throw new Error(complaint);
  }

  async #waitForMonitor(): Promise<void> {
    await waitFor(`answer of QEMU (${this.name})`, MONITOR_TIMEOUT_MS, async () => {
      this.#child.assertRunning();
      return isUp(this.testQmpPath);
    });
  }
}

/**
 * Whether QEMU has built its machine and serves QMP. It listens, and its monitor's thread greets, before that; commands are answered by the main loop
 * and so only afterwards.
 */
async function isUp(qmpPath: string): Promise<boolean> {
  const socket = connect(qmpPath).setEncoding('utf8');
  socket.setTimeout(MONITOR_TIMEOUT_MS, () => socket.destroy(new Error(`${qmpPath} doesn't answer`)));
  socket.write('{"execute":"qmp_capabilities"}\n');
  let text = '';
  try {
    for await (const part of socket) {
      text += part;
      if (text.includes('"return"')) return true;
    }
    return false;
  } catch (error) {
    // Not there yet, or gone: whether QEMU still runs is for the caller to see.
    if (
      ['ENOENT', 'ECONNREFUSED', 'ECONNRESET', 'EPIPE'].includes((error as NodeJS.ErrnoException).code ?? '')
    )
      return false;
    throw error;
  }
}

/** QEMU as nobody: a folder and images that it may write to, and the devices, which it would otherwise find closed in a container. */
async function prepareForNobody(
  directory: string,
  options: VmOptions,
  disks: DiskImage[],
): Promise<string[]> {
  for (const file of [directory, ...disks.map((disk) => disk.path)]) chownSync(file, NOBODY_UID, NOBODY_UID);
  const mounts: string[] = [];
  for (const { device, name } of OPEN_DEVICES) {
    if (!existsSync(device)) continue;
    const node = path.join(directory, name);
    const number = statSync(device).rdev;
    await run('mknod', '-m', '666', node, 'c', String(number >> 8), String(number & 0xff));
    mounts.push(`mount --bind ${node} ${device}`);
  }
  // In a mount namespace of QEMU's own: the host's /dev stays as it is. `ip netns exec` makes one by itself.
  const own = options.network ? [] : ['unshare', '--mount', '--propagation', 'private'];
  return [...own, 'sh', '-ec', `${mounts.join('; ')}; exec "$@"`, 'sh'];
}

/** For nobody, copies of the guest's files: the project may lie in a folder that is closed to him. */
function readable(files: GuestFiles, directory: string, options: VmOptions): GuestFiles {
  if (!options.nobody) return files;
  const copy = (file: string) => {
    const target = path.join(directory, path.basename(file));
    copyFileSync(file, target);
    return target;
  };
  return {
    kernel: copy(files.kernel),
    initrd: copy(files.initrd),
    initrdDisks: copy(files.initrdDisks),
    baremetal: copy(files.baremetal),
  };
}

function qemuCommand(options: VmOptions, files: GuestFiles, disks: DiskImage[], directory: string): string[] {
  const { machine = 'q35', accel = 'tcg', smp = 1, vga = 'none', append = '' } = options;
  const memoryMiB = options.memoryMiB ?? (options.guest === 'linux' ? 256 : 64);
  const ram = options.sharedRam
    ? [
        '-machine',
        `${machine},accel=${accel},memory-backend=ram0`,
        '-object',
        `memory-backend-memfd,id=ram0,size=${memoryMiB}M,share=on`,
      ]
    : ['-machine', `${machine},accel=${accel}`];
  const boot =
    options.guest === 'linux'
      ? linuxArguments(files, disks, append)
      : ['-kernel', files.baremetal, ...(append ? ['-append', append] : [])];
  return [
    qemuBinary(options),
    ...['-name', options.name, ...ram, '-smp', String(smp), '-m', `${memoryMiB}M`],
    ...['-nodefaults', '-nographic', '-vga', vga, '-serial', `file:${path.join(directory, 'console')}`],
    ...['qmp', 'qmp-test'].flatMap((name) => [
      '-qmp',
      `unix:${path.join(directory, name)},server=on,wait=off`,
    ]),
    ...boot,
    ...(options.nics ?? []).flatMap(nicArguments),
    ...diskArguments(disks),
    ...(options.sandbox
      ? ['-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny']
      : []),
    ...(options.paused ? ['-S'] : []),
    ...(options.extraArgs ?? []),
  ];
}

function linuxArguments(files: GuestFiles, disks: DiskImage[], append: string): string[] {
  const known = disks.length > 0 ? `colo.disks=${guestNames(disks).join(',')}` : '';
  const initrd = disks.length > 0 ? files.initrdDisks : files.initrd;
  // no_timer_check: a guest that gets too little processor while it boots would take its timer for broken, and panic.
  const line = `console=ttyS0 quiet no_timer_check ${known} ${append}`;
  return ['-kernel', files.kernel, '-initrd', initrd, '-append', line];
}

function qemuBinary(options: VmOptions): string {
  const { COLO_QEMU = 'qemu-system-x86_64' } = process.env;
  return options.qemu ?? COLO_QEMU;
}

/** Both VMs of a protection need the same addresses, so the default depends on nothing but the position. */
function nicArguments(nic: Nic, index: number): string[] {
  const { tap, mac = `52:54:00:77:00:0${index + 2}`, model = 'virtio-net-pci' } = nic;
  return [
    '-netdev',
    `tap,id=net${index},ifname=${tap},script=no,downscript=no`,
    '-device',
    `${model},id=nic${index},netdev=net${index},mac=${mac}`,
  ];
}
