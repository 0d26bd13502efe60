/**
 * The daemon's configuration: agent.toml, and conf.d/*.toml beside it, of which each may hold VMs.
 *
 *     state-dir = "/var/lib/colo-agent"      the host's: HOST_KEYS, for every VM, and those of the daemon itself
 *     [defaults]                             options for every VM
 *     interval = 50
 *     [vm.web1]                              a VM: its QMP socket, its role, and options of its own
 *     qmp = "/run/vm/web1.qmp"
 */
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { formatHttpAddress, type HttpAddress, parseHttpAddress } from '../http/address.ts';
import { WEB_ADDRESS } from '../web/address.ts';
import { suggestion } from './spelling.ts';
import { ConfigError, type Entry, readToml } from './toml.ts';
import { argumentsOf, type Role, type VmOption, type VmOptions } from './vm-option.ts';

/** QEMU's QMP socket, or the name of libvirt's domain. */
export type VmSource = { qmp: string } | { libvirt: string };

export interface VmConfig {
  name: string;
  /** `auto`: what QEMU says of the VM decides. */
  role: 'auto' | Role;
  source: VmSource;
  /** The arguments of `colo-agent primary` and `secondary` but for --control; null: it can't be that. */
  args: Readonly<Record<Role, readonly string[] | null>>;
  /** Every value that it has, of its own or of the host's and the defaults, by key. */
  values: ReadonlyMap<string, unknown>;
  /** Those of its own table. */
  own: ReadonlyMap<string, unknown>;
  /** Where its table is, and FILE:LINE:COLUMN of it. */
  file: string;
  place: string;
}

/** A file of conf.d as it is to be, before it is there. */
export interface Draft {
  file: string;
  text: string;
}

export interface DaemonConfig {
  /** Who may command the daemon beside root: a group's name, or its number. */
  controlGroup: string | null;
  /** Where the daemon keeps what is to outlive it. */
  stateFolder: string | undefined;
  /** Where the metrics of all VMs are served; null: nowhere. */
  metrics: HttpAddress | null;
  /** Where the page of all VMs is served; null: nowhere. */
  web: HttpAddress | null;
  vms: ReadonlyMap<string, VmConfig>;
}

/** Options that are the host's: they stand above all tables. */
const HOST_KEYS = ['node', 'state-dir', 'log-level'];
const DAEMON_KEYS = ['control-group', 'metrics', 'web'];
/** Of these, the addresses at which something is served. */
const SERVED_KEYS = ['metrics', 'web'] as const;
type ServedKey = (typeof SERVED_KEYS)[number];
const TABLES = ['defaults', 'vm'];
const ROLES = ['auto', 'primary', 'standby'] as const;
/** The daemon says what these are. */
const DAEMON_OPTIONS = ['vm', 'control', 'json'];
/** What two VMs of one host can't share. */
const EXCLUSIVE = ['qmp', 'libvirt', 'listen', 'trace', 'watchdog', 'metrics'];

/** Who has the host's own keys. */
const DAEMON = 'the daemon';

/** `draft`: in place of what that file has now. Throws ConfigError with everything that is wrong. */
export function readConfig(file: string, options: VmOptions, draft: Draft | null = null): DaemonConfig {
  const reader = new ConfigReader(options, draft);
  reader.read(file, true);
  const beside = new Set([...reader.filesBeside(file), ...(draft === null ? [] : [draft.file])]);
  for (const each of [...beside].sort()) reader.read(each, false);
  return reader.config();
}

export function dropInFolder(file: string): string {
  return path.join(path.dirname(file), 'conf.d');
}

interface VmTable {
  file: string;
  place: string;
  entries: Map<string, Entry>;
}

class ConfigReader {
  readonly #options: VmOptions;
  readonly #draft: Draft | null;
  readonly #byKey: ReadonlyMap<string, VmOption>;
  readonly #problems: string[] = [];
  readonly #defaults = new Map<string, Entry>();
  readonly #tables = new Map<string, VmTable>();
  #controlGroup: string | null = null;
  readonly #served: Record<ServedKey, HttpAddress | null> = { metrics: null, web: null };

  constructor(options: VmOptions, draft: Draft | null) {
    this.#options = options;
    this.#draft = draft;
    const own = options.all.filter(({ key }) => !DAEMON_OPTIONS.includes(key));
    this.#byKey = new Map(own.map((option) => [option.key, option]));
  }

  /** Those of conf.d; without that folder, none. */
  filesBeside(file: string): string[] {
    const folder = dropInFolder(file);
    try {
      const names = readdirSync(folder).filter((name) => name.endsWith('.toml'));
      return names.map((name) => path.join(folder, name));
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      if (code !== 'ENOENT') this.#problems.push(`${folder}: it can't be read: ${message}`);
      return [];
    }
  }

  /** `main`: agent.toml, where the host's keys and the defaults may stand. */
  read(file: string, main: boolean): void {
    let entries: Entry[];
    try {
      entries = readToml(file, this.#draft?.file === file ? this.#draft.text : readFileSync(file, 'utf8'));
    } catch (error) {
      if (error instanceof ConfigError) this.#problems.push(...error.problems);
      else this.#problems.push(`${file}: it can't be read: ${(error as Error).message}`);
      return;
    }
    for (const entry of entries) {
      const problem = this.#sort(file, main, entry);
      if (problem !== null) this.#problems.push(`${entry.place}: ${problem}`);
    }
  }

  config(): DaemonConfig {
    const vms = new Map<string, VmConfig>();
    for (const [name, table] of this.#tables) {
      const vm = this.#vm(name, table);
      if (vm !== null) vms.set(name, vm);
    }
    this.#findShared();
    if (this.#problems.length > 0) throw new ConfigError(this.#problems);
    const folder = this.#defaults.get('state-dir')?.value;
    return {
      controlGroup: this.#controlGroup,
      ...this.#served,
      stateFolder: typeof folder === 'string' ? folder : undefined,
      vms,
    };
  }

  /** Takes an entry to where it belongs. What is wrong with it, or null. */
  #sort(file: string, main: boolean, entry: Entry): string | null {
    const [table = '', name, key, ...rest] = entry.path;
    if (table === 'vm') {
      if (name === undefined) return whereTable(entry);
      if (rest.length > 0) return `\`${key}\` holds no table`;
      return this.#vmEntry(file, name, key, entry);
    }
    if (!main) return `files in conf.d hold VMs alone: write [vm.NAME], or \`${table}\` in agent.toml`;
    if (table === 'defaults') {
      if (name === undefined) return whereTable(entry);
      if (HOST_KEYS.includes(name)) return `\`${name}\` is the host's: write it above all tables`;
      return this.#option(name, entry, this.#defaults);
    }
    if (HOST_KEYS.includes(table)) return this.#option(table, entry, this.#defaults);
    if (table === 'control-group') return this.#group(entry);
    const served = SERVED_KEYS.find((key) => key === table);
    if (served !== undefined) return this.#address(served, entry);
    const known = [...HOST_KEYS, ...DAEMON_KEYS, ...TABLES];
    const remedy = this.#byKey.has(table)
      ? '; it belongs below [defaults] or [vm.NAME]'
      : suggestion(table, known);
    return `unknown key \`${table}\`${remedy}`;
  }

  #vmEntry(file: string, name: string, key: string | undefined, entry: Entry): string | null {
    const known = this.#tables.get(name);
    if (known !== undefined && known.file !== file)
      return `VM \`${name}\` stands at ${known.place} already: one of the two must go`;
    const table = known ?? { place: entry.place, entries: new Map<string, Entry>(), file };
    this.#tables.set(name, table);
    if (known === undefined) this.#checkName(name, entry);
    if (key === undefined) return whereTable(entry);
    if (key !== 'role') return this.#option(key, entry, table.entries);
    table.entries.set(key, entry);
    if (ROLES.some((role) => role === entry.value)) return null;
    return `\`role\` is "auto", "primary" or "standby", not ${JSON.stringify(entry.value)}`;
  }

  #checkName(name: string, { place }: Entry): void {
    try {
      this.#options.all.find(({ key }) => key === 'vm')?.check(name);
    } catch (error) {
      this.#problems.push(`${place}: \`${name}\`: ${(error as Error).message}`);
    }
  }

  #option(key: string, entry: Entry, into: Map<string, Entry>): string | null {
    if (DAEMON_OPTIONS.includes(key)) return `\`${key}\` is the daemon's to say: leave it out`;
    const option = this.#byKey.get(key);
    if (option === undefined)
      return `unknown key \`${key}\`${suggestion(key, ['role', ...this.#byKey.keys()])}`;
    try {
      argumentsOf(option, entry);
    } catch (error) {
      return (error as Error).message;
    }
    into.set(key, entry);
    return null;
  }

  #group({ value }: Entry): string | null {
    if (typeof value !== 'string' && typeof value !== 'number')
      return '`control-group` is a name or a number';
    this.#controlGroup = String(value);
    return null;
  }

  #address(key: ServedKey, { value }: Entry): string | null {
    if (key === 'web' && typeof value === 'boolean') {
      this.#served.web = value ? WEB_ADDRESS : null;
      return null;
    }
    if (typeof value !== 'string' && typeof value !== 'number')
      return `\`${key}\` is an address: PORT, "HOST:PORT" or "unix:PATH"`;
    try {
      this.#served[key] = parseHttpAddress(String(value));
      return null;
    } catch (error) {
      return `\`${key} = ${JSON.stringify(value)}\`: ${(error as Error).message}`;
    }
  }

  #vm(name: string, { file, place, entries }: VmTable): VmConfig | null {
    const all = new Map([...this.#defaults, ...entries]);
    const role = (entries.get('role')?.value ?? 'auto') as VmConfig['role'];
    const source = sourceOf(all);
    if (typeof source === 'string') {
      this.#problems.push(`${place}: VM \`${name}\` has ${source}`);
      return null;
    }
    try {
      if ('qmp' in source) assertConnectable(source.qmp);
    } catch (error) {
      this.#problems.push(`${entries.get('qmp')?.place ?? place}: \`qmp\`: ${(error as Error).message}`);
    }
    const may = {
      primary: all.has('peer') && role !== 'standby',
      standby: all.has('listen') && role !== 'primary',
    };
    const lacking =
      role === 'standby' ? '`listen`' : role === 'primary' ? '`peer`' : 'neither `peer` nor `listen`';
    if (!may.primary && !may.standby) {
      const has = role === 'auto' ? `has ${lacking}` : `is to be a ${role} and has no ${lacking}`;
      this.#problems.push(
        `${place}: VM \`${name}\` ${has}: \`peer = "HOST:PORT"\` is where its standby is, \`listen = "HOST:PORT"\` where it is one`,
      );
      return null;
    }
    const args = {
      primary: may.primary ? this.#args('primary', name, place, all) : null,
      standby: may.standby ? this.#args('standby', name, place, all) : null,
    };
    return { name, role, source, args, values: valuesOf(all), own: valuesOf(entries), file, place };
  }

  #args(role: Role, name: string, place: string, entries: ReadonlyMap<string, Entry>): string[] {
    const args = [`--vm=${name}`];
    for (const [key, entry] of entries) {
      const option = this.#byKey.get(key);
      if (option?.roles.includes(role)) args.push(...argumentsOf(option, entry));
    }
    try {
      this.#options.assertFit(role, args);
    } catch (error) {
      this.#problems.push(`${place}: VM \`${name}\` as a ${role}: ${(error as Error).message}`);
    }
    return args;
  }

  #findShared(): void {
    for (const key of EXCLUSIVE) {
      const users = new Map<string, string>();
      const { metrics } = this.#served;
      if (key === 'metrics' && metrics !== null) users.set(formatHttpAddress(metrics), DAEMON);
      for (const [name, { place, entries }] of this.#tables) {
        const entry = entries.get(key) ?? this.#defaults.get(key);
        const value = key === 'metrics' && entry ? metricsText(entry) : String(entry?.value);
        if (entry === undefined || value.endsWith(':0')) continue; // port 0: any free one
        const other = users.get(value);
        if (other !== undefined)
          this.#problems.push(
            `${entries.get(key)?.place ?? place}: VM \`${name}\` has the same \`${key}\`, ${value}, as ${other}: each needs its own`,
          );
        users.set(value, `VM \`${name}\``);
      }
    }
  }
}

function valuesOf(entries: ReadonlyMap<string, Entry>): Map<string, unknown> {
  return new Map([...entries].map(([key, { value }]) => [key, value]));
}

/** `sun_path` of unix(7). */
const SOCKET_BYTES_MAX = 107;

/** Throws Error for a path that no socket can have. */
function assertConnectable(socketPath: string): void {
  const bytes = Buffer.byteLength(socketPath);
  if (bytes > SOCKET_BYTES_MAX)
    throw new Error(
      `the path has ${bytes} bytes, and a socket's ${SOCKET_BYTES_MAX} at the most: have QEMU make it elsewhere`,
    );
}

/** Where a VM is found, or what is wrong with what was said about that. */
function sourceOf(entries: ReadonlyMap<string, Entry>): VmSource | string {
  const [qmp, libvirt] = [entries.get('qmp')?.value, entries.get('libvirt')?.value];
  if (qmp !== undefined && libvirt !== undefined)
    return '`qmp` and `libvirt`: one of them says which VM it is, leave the other out';
  if (qmp !== undefined) return { qmp: String(qmp) };
  if (libvirt !== undefined) return { libvirt: String(libvirt) };
  return "no `qmp`: give the path of its QEMU's QMP socket, or `libvirt` with the name of its domain";
}

/** Of an option that was found right: an address may be written in several ways. */
function metricsText({ value }: Entry): string {
  return formatHttpAddress(parseHttpAddress(String(value)));
}

function whereTable({ path: keys, value }: Entry): string | null {
  const name = keys.join('.');
  return value === undefined ? null : `\`${name}\` is a table: write [${name}]`;
}
