/** QEMU's command line as options and values. What an option is that colo-agent doesn't know can't be told, so such a one is named. */
import type { Problem } from '../vm/preflight.ts';

export interface QemuOption {
  /** Without its dashes. */
  name: string;
  value: string | null;
}

export interface QemuCommand {
  binary: string;
  options: QemuOption[];
}

/** Those that have no value, and mean the same on the standby's host. */
const SWITCHES = new Set([
  ...[
    'enable-kvm',
    'no-user-config',
    'nodefaults',
    'nographic',
    'no-shutdown',
    'no-reboot',
    'no-acpi',
    'no-hpet',
  ],
  ...['no-fd-bootchk', 'S', 's', 'usb', 'singlestep', 'win2k-hack', 'full-screen', 'alt-grab', 'ctrl-grab'],
  ...[
    'mem-prealloc',
    'preconfig',
    'only-migratable',
    'enable-sync-profile',
    'async-teardown',
    'perfmap',
    'jitdump',
  ],
  ...['xen-domid-restrict'],
]);

/** Those whose value means the same on the standby's host. */
const PORTABLE = new Set([
  ...[
    'name',
    'accel',
    'cpu',
    'smp',
    'm',
    'overcommit',
    'uuid',
    'rtc',
    'boot',
    'append',
    'global',
    'audiodev',
    'audio',
  ],
  ...['vga', 'icount', 'sandbox', 'msg', 'action', 'watchdog-action', 'numa', 'k', 'd', 'trace', 'g'],
  ...['runas', 'chroot', 'run-with', 'prom-env', 'semihosting-config', 'echr', 'compat'],
  ...['seed', 'dfilter', 'add-fd', 'usbdevice', 'parallel-mode', 'tb-size', 'no-quit'],
]);

/** Those that name a file which must be the same on the standby's host. */
export const FILE_OPTIONS: ReadonlySet<string> = new Set([
  ...['kernel', 'initrd', 'dtb', 'bios', 'shim', 'option-rom', 'L'],
]);

/** What a translator of its own takes care of. */
const TRANSLATED = new Set([
  ...[
    'machine',
    'M',
    'drive',
    'blockdev',
    'device',
    'netdev',
    'nic',
    'net',
    'chardev',
    'mon',
    'qmp',
    'qmp-pretty',
  ],
  ...[
    'monitor',
    'serial',
    'parallel',
    'debugcon',
    'gdb',
    'vnc',
    'spice',
    'display',
    'pidfile',
    'D',
    'object',
  ],
  ...['mem-path', 'fw_cfg', 'smbios', 'acpitable'],
]);

/** What belongs to the start of this one QEMU and not to the machine. With a value, or without. */
const DROPPED_WITH_VALUE = new Set(['incoming', 'loadvm']);
const DROPPED = new Set(['daemonize', 'snapshot']);

const REFUSED: ReadonlyMap<string, string> = new Map([
  ...['hda', 'hdb', 'hdc', 'hdd', 'fda', 'fdb', 'sd', 'mtdblock', 'pflash', 'cdrom'].map(
    (name) => [name, 'write it as -drive, with an id, and restart the VM'] as [string, string],
  ),
  ['readconfig', "write what is in the file into the command line: what stands there isn't seen"],
  ['virtfs', "a folder of the host can't be followed to another: use a disk, or NFS inside the guest"],
  ['fsdev', "a folder of the host can't be followed to another: use a disk, or NFS inside the guest"],
  ['tpmdev', "the TPM's state lies outside QEMU: take it away"],
  ['set', 'write what it sets where it belongs, and restart the VM'],
  ['plugin', 'a TCG plugin is code that colo-agent knows nothing of: take it away'],
]);

const SWITCH_NAMES = new Set([...SWITCHES, ...DROPPED]);
const VALUE_NAMES = new Set([
  ...PORTABLE,
  ...FILE_OPTIONS,
  ...TRANSLATED,
  ...DROPPED_WITH_VALUE,
  ...REFUSED.keys(),
]);

export function isDropped(name: string): boolean {
  return DROPPED.has(name) || DROPPED_WITH_VALUE.has(name);
}

/** `problems` gets a line for each word that can't be understood or taken over. */
export function parseCommand(commandLine: readonly string[], problems: Problem[]): QemuCommand {
  const [binary = '', ...words] = commandLine;
  const options: QemuOption[] = [];
  for (let index = 0; index < words.length; index += 1) {
    const word = words[index] as string;
    const name = word.replace(/^--?/, '');
    if (!word.startsWith('-') || word === '-') {
      problems.push(
        refusal(word, 'it stands for -hda', 'write it as -drive, with an id, and restart the VM'),
      );
    } else if (SWITCH_NAMES.has(name)) {
      options.push({ name, value: null });
    } else {
      const value = words[index + 1] ?? null;
      if (!VALUE_NAMES.has(name)) problems.push(unknownOption(word));
      else if (value === null)
        problems.push(refusal(word, 'its value is missing', 'look at the command line'));
      else options.push({ name, value });
      // An unknown option's value, where it seems to have one, isn't taken for a disk.
      if (VALUE_NAMES.has(name) || (value !== null && !value.startsWith('-'))) index += 1;
    }
  }
  for (const { name, value } of options) {
    const remedy = REFUSED.get(name);
    if (remedy !== undefined)
      problems.push(refusal(`-${name} ${value}`, "it can't be taken over as it stands", remedy));
  }
  return { binary, options: options.filter(({ name }) => !REFUSED.has(name)) };
}

function unknownOption(word: string): Problem {
  return refusal(
    word,
    "colo-agent doesn't know this option, nor what it would mean on the standby's host",
    "leave it out of the primary's command line, or write the standby's by hand: the same devices, -S, raw disks (docs/standby.md)",
  );
}

export function refusal(where: string, what: string, remedy: string): Problem {
  return { check: null, where, what, remedy };
}

export function commandWords({ binary, options }: QemuCommand): string[] {
  return [binary, ...options.flatMap(({ name, value }) => [`-${name}`, ...(value === null ? [] : [value])])];
}

/** For a POSIX shell; an option with its value on a line of its own. */
export function shellText(words: readonly string[]): string {
  return words
    .map(quoted)
    .map((word, index) => (index === 0 ? word : word.startsWith('-') ? ` \\\n  ${word}` : ` ${word}`))
    .join('');
}

function quoted(word: string): string {
  return /^[A-Za-z0-9_@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
