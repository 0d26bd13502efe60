/**
 * The QMP commands and events that colo-agent uses, as types; names and shapes are those of QEMU's qapi/*.json. Only members that are read
 * here are listed in replies; optional ones are those that are missing in some version from 7.2 on, or in some state.
 */
import type { Json } from './json.ts';

interface Command<Arguments extends object, Returns> {
  arguments: Arguments;
  returns: Returns;
}

/** The empty object: no arguments, or nothing but success. */
export type Nothing = Record<never, never>;

export type RunStateName =
  | 'debug'
  | 'inmigrate'
  | 'internal-error'
  | 'io-error'
  | 'paused'
  | 'postmigrate'
  | 'prelaunch'
  | 'finish-migrate'
  | 'restore-vm'
  | 'running'
  | 'save-vm'
  | 'shutdown'
  | 'suspended'
  | 'watchdog'
  | 'guest-panicked'
  | 'colo';

export type JobStatus =
  | 'undefined'
  | 'created'
  | 'running'
  | 'paused'
  | 'ready'
  | 'standby'
  | 'waiting'
  | 'pending'
  | 'aborting'
  | 'concluded'
  | 'null';

export type ShutdownActionName = 'poweroff' | 'pause';

export interface QemuVersion {
  major: number;
  minor: number;
  micro: number;
}

export interface QomProperty {
  name: string;
  /** A type's name, or `child<TYPE>`, or `link<TYPE>`. */
  type: string;
}

export interface PciDevice {
  bus: number;
  slot: number;
  function: number;
  class_info: { class: number; desc?: string };
  id: { vendor: number; device: number; subsystem?: number; 'subsystem-vendor'?: number };
  irq_pin: number;
  qdev_id: string;
  pci_bridge?: { devices?: PciDevice[] };
}

export interface BlockDevice {
  device: string;
  /** The QOM path or the id of the device model that uses it. */
  qdev?: string;
  removable: boolean;
  inserted?: {
    ro: boolean;
    file: string;
    drv: string;
    'node-name'?: string;
    image: { 'virtual-size': number; filename?: string };
  };
}

export interface FdSet {
  'fdset-id': number;
  fds: { fd: number; opaque?: string }[];
}

export interface SchemaEntry {
  name: string;
  'meta-type': string;
  /** Commands: the object type of the arguments. */
  'arg-type'?: string;
  /** Objects. */
  members?: { name: string }[];
}

export interface QmpCommands {
  'add-fd': Command<{ 'fdset-id'?: number; opaque?: string }, { 'fdset-id': number; fd: number }>;
  'announce-self': Command<{ initial: number; max: number; rounds: number; step: number }, Nothing>;
  'block-export-add': Command<
    { type: 'nbd'; id: string; 'node-name': string; name: string; writable: boolean },
    Nothing
  >;
  'block-export-del': Command<{ id: string; mode: 'safe' | 'hard' }, Nothing>;
  'block-job-cancel': Command<{ device: string; force: boolean }, Nothing>;
  block_resize: Command<{ 'node-name': string; size: number }, Nothing>;
  'blockdev-add': Command<{ 'node-name': string; driver: string; [option: string]: Json }, Nothing>;
  'blockdev-del': Command<{ 'node-name': string }, Nothing>;
  'blockdev-mirror': Command<
    {
      'job-id': string;
      device: string;
      target: string;
      sync: 'none';
      'copy-mode': 'write-blocking';
      'on-target-error': 'stop';
      'filter-node-name': string;
    },
    Nothing
  >;
  'chardev-add': Command<{ id: string; backend: { type: string; data: Record<string, Json> } }, Nothing>;
  'chardev-remove': Command<{ id: string }, Nothing>;
  closefd: Command<{ fdname: string }, Nothing>;
  cont: Command<Nothing, Nothing>;
  getfd: Command<{ fdname: string }, Nothing>;
  'human-monitor-command': Command<{ 'command-line': string }, string>;
  'job-dismiss': Command<{ id: string }, Nothing>;
  'nbd-server-start': Command<{ addr: { type: 'fd'; data: { str: string } } }, Nothing>;
  'nbd-server-stop': Command<Nothing, Nothing>;
  'object-add': Command<{ 'qom-type': string; id: string; [property: string]: Json }, Nothing>;
  'object-del': Command<{ id: string }, Nothing>;
  qmp_capabilities: Command<{ enable?: 'oob'[] }, Nothing>;
  'qom-get': Command<{ path: string; property: string }, Json>;
  'qom-list': Command<{ path: string }, QomProperty[]>;
  'query-block-exports': Command<Nothing, { id: string; 'node-name': string }[]>;
  'query-block': Command<Nothing, BlockDevice[]>;
  'query-blockstats': Command<Nothing, { device?: string; qdev?: string; stats: { wr_bytes: number } }[]>;
  'query-chardev': Command<Nothing, { label: string; filename: string }[]>;
  'query-cpus-fast': Command<Nothing, { 'cpu-index': number; 'qom-path': string; target: string }[]>;
  'query-fdsets': Command<Nothing, FdSet[]>;
  'query-jobs': Command<Nothing, { id: string; type: string; status: JobStatus; error?: string }[]>;
  'query-kvm': Command<Nothing, { enabled: boolean; present: boolean }>;
  'query-migrate': Command<Nothing, { status?: string; 'blocked-reasons'?: string[] }>;
  'query-named-block-nodes': Command<{ flat?: boolean }, { 'node-name'?: string }[]>;
  'query-pci': Command<Nothing, { bus: number; devices: PciDevice[] }[]>;
  'query-qmp-schema': Command<Nothing, SchemaEntry[]>;
  'query-status': Command<Nothing, { running: boolean; status: RunStateName }>;
  'query-version': Command<Nothing, { qemu: QemuVersion; package: string }>;
  quit: Command<Nothing, Nothing>;
  'remove-fd': Command<{ 'fdset-id': number; fd?: number }, Nothing>;
  'set-action': Command<{ shutdown?: ShutdownActionName }, Nothing>;
  'snapshot-load': Command<{ 'job-id': string; tag: string; vmstate: string; devices: string[] }, Nothing>;
  stop: Command<Nothing, Nothing>;
  system_reset: Command<Nothing, Nothing>;
  'xen-save-devices-state': Command<{ filename: string; live: boolean }, Nothing>;
}

export interface QmpEvents {
  BLOCK_IO_ERROR: { device: string; operation: string; action: string; reason?: string };
  GUEST_PANICKED: { action: string };
  BLOCK_EXPORT_DELETED: { id: string };
  BLOCK_JOB_ERROR: { device: string; operation: string; action: string };
  BLOCK_JOB_COMPLETED: { device: string; error?: string };
  JOB_STATUS_CHANGE: { id: string; status: JobStatus };
  RESET: { guest: boolean; reason: string };
  RESUME: undefined;
  SHUTDOWN: { guest: boolean; reason: string };
  STOP: undefined;
}

export type CommandName = keyof QmpCommands;
export type Arguments<Name extends CommandName> = QmpCommands[Name]['arguments'];
export type Returns<Name extends CommandName> = QmpCommands[Name]['returns'];
export type EventName = keyof QmpEvents;

export interface QmpEvent<Name extends EventName = EventName> {
  event: Name;
  data: QmpEvents[Name];
  /** The host's real-time clock; -1 where it failed. */
  timestamp: { seconds: number; microseconds: number };
}
