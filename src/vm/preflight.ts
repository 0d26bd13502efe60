/** Everything that stands against protecting a VM, found before anything is touched. */
import type { QmpClient } from '../qmp/client.ts';
import type { CommandName, RunStateName } from '../qmp/commands.ts';
import { QmpSchema } from '../qmp/schema.ts';
import { type Device, listDevices } from './device-tree.ts';
import { DISK_PREFIX } from './disk-mirror.ts';
import { copiedDisks, DISKS_MAX, type Disk, type DiskExceptions, findDisks } from './disks.ts';
import { HostProcess } from './host-process.ts';
import { findNics, isUngated } from './nics.ts';

/** What is looked at; `colo-agent doctor` has a line of the same name for each. */
export type PreflightCheck = 'qemu' | 'run-state' | 'devices' | 'nics' | 'disks' | 'replication';

export interface Problem {
  /** Null: of what the doctor doesn't look at. */
  check: PreflightCheck | null;
  what: string;
  /** The part of the VM: `NIC net0`, `disk vda`, `QEMU`. */
  where: string;
  /** What a person can do about it. */
  remedy: string;
}

/** What the user accepts to go unprotected, by id (NICs also by MAC address). */
export interface AcceptedExceptions extends DiskExceptions {
  ungatedNics: readonly string[];
}

export class PreflightError extends Error {
  readonly problems: readonly Problem[];

  constructor(problems: readonly Problem[]) {
    super(problems.map(({ what, where, remedy }) => `${where}: ${what} (${remedy})`).join('; '));
    this.name = 'PreflightError';
    this.problems = problems;
  }
}

const NEWER_QEMU = 'use QEMU 7.2 or newer';

/** What each side asks of QEMU beyond what every version since 6.0 has. */
const PRIMARY_COMMANDS: readonly CommandName[] = [
  'xen-save-devices-state',
  'add-fd',
  'getfd',
  'chardev-add',
  'object-add',
  'set-action',
  'human-monitor-command',
];
/** Only where there are disks to copy. */
const DISK_COMMANDS: readonly CommandName[] = [
  'blockdev-add',
  'blockdev-mirror',
  'block-job-cancel',
  'block-export-add',
  'nbd-server-start',
];
const STANDBY_COMMANDS: readonly CommandName[] = [
  'snapshot-load',
  'blockdev-add',
  'add-fd',
  'announce-self',
  'human-monitor-command',
];

export interface Examined {
  qmp: QmpClient;
  process: HostProcess;
  exceptions: AcceptedExceptions;
}

type Trouble = Omit<Problem, 'check'>;
type Look = readonly [PreflightCheck, (vm: Examined) => Promise<Trouble[]>];

/** In this order, so that the first problem named is the one to solve first. */
const LOOKS: Record<'primary' | 'secondary', readonly Look[]> = {
  primary: [
    ['qemu', ({ qmp }) => missingCommands(qmp, PRIMARY_COMMANDS)],
    ['run-state', ({ qmp }) => wrongRunState(qmp)],
    ['run-state', ({ qmp }) => busy(qmp)],
    ['devices', ({ qmp, process }) => uncopiedDevices(qmp, process)],
    ['nics', ungateableNics],
    ['disks', ({ qmp, exceptions }) => uncopyableDisks(qmp, exceptions)],
    ['replication', ({ qmp, exceptions }) => missingForDisks(qmp, exceptions)],
  ],
  secondary: [
    ['qemu', ({ qmp }) => missingCommands(qmp, STANDBY_COMMANDS)],
    ['run-state', ({ qmp }) => busy(qmp)],
    ['devices', ({ qmp, process }) => uncopiedDevices(qmp, process)],
  ],
};

/** What stands against the VM in that role; `check`: as far as this one sees it. Changes nothing. */
export async function findProblems(
  role: 'primary' | 'secondary',
  vm: Examined,
  check: PreflightCheck | null = null,
): Promise<Problem[]> {
  const problems: Problem[] = [];
  for (const [name, look] of LOOKS[role]) {
    if (check !== null && check !== name) continue;
    problems.push(...(await look(vm)).map((trouble) => ({ check: name, ...trouble })));
  }
  return problems;
}

/** Throws PreflightError with every problem at once. Changes nothing. */
export async function assertProtectable(
  qmp: QmpClient,
  pid: number,
  exceptions: AcceptedExceptions,
  process = new HostProcess(pid),
): Promise<void> {
  const problems = await findProblems('primary', { qmp, process, exceptions });
  if (problems.length > 0) throw new PreflightError(problems);
}

/** As assertProtectable, for a VM that is to be a standby. That it stands is the caller's to see. */
export async function assertUsableAsStandby(
  qmp: QmpClient,
  pid: number,
  process = new HostProcess(pid),
): Promise<void> {
  const exceptions = { ungatedNics: [], ungatedDisks: [], sharedDisks: [] };
  const problems = await findProblems('secondary', { qmp, process, exceptions });
  if (problems.length > 0) throw new PreflightError(problems);
}

async function missingCommands(qmp: QmpClient, commands: readonly CommandName[]): Promise<Trouble[]> {
  const schema = await QmpSchema.query(qmp);
  return commands
    .filter((command) => !schema.hasCommand(command))
    .map((command) => ({ where: 'QEMU', what: `it lacks the QMP command ${command}`, remedy: NEWER_QEMU }));
}

const FIT_TO_PROTECT: ReadonlySet<RunStateName> = new Set(['running', 'paused', 'prelaunch', 'suspended']);

async function wrongRunState(qmp: QmpClient): Promise<Trouble[]> {
  const { status } = await qmp.execute('query-status');
  if (FIT_TO_PROTECT.has(status)) return [];
  return [
    { where: 'VM', what: `it is in state ${status}`, remedy: 'bring it to state running or paused first' },
  ];
}

const MIGRATION_AT_REST: ReadonlySet<string> = new Set(['none', 'completed', 'cancelled', 'failed']);

async function busy(qmp: QmpClient): Promise<Trouble[]> {
  const [migration, jobs] = await qmp.executeAll([['query-migrate'], ['query-jobs']]);
  const { status = 'none', 'blocked-reasons': blockers = [] } = migration;
  const problems = blockers.map((reason) => ({
    where: 'VM',
    what: `its state can't be moved: ${reason}`,
    remedy: 'take the device away that blocks migration',
  }));
  if (!MIGRATION_AT_REST.has(status)) {
    problems.push({
      where: 'VM',
      what: `a migration is ${status}`,
      remedy: 'wait for its end, or cancel it',
    });
  }
  for (const { id, type, status: state } of jobs) {
    // What an agent left, a mirror or a mailbox's job that has concluded, is taken away by the next one.
    if (state !== 'concluded' && !id.startsWith(DISK_PREFIX))
      problems.push({
        where: `job ${id}`,
        what: `a ${type} job is ${state}`,
        remedy: 'wait for its end, or cancel it',
      });
  }
  return problems;
}

/** Devices that write guest RAM past QEMU's page tables, or keep state or do output where nothing here sees it. */
const OUTSIDE_TYPES = /^(vfio-|vhost-)/;
const VFIO_FILES = /^(\/dev\/vfio\/|anon_inode:\[vfio-device\])/;

async function uncopiedDevices(qmp: QmpClient, process: HostProcess): Promise<Trouble[]> {
  const devices = (await listDevices(qmp)).filter(({ type }) => OUTSIDE_TYPES.test(type));
  const problems = devices.map((device) => ({
    where: `device ${nameOf(device)}`,
    what: `${device.type} works outside QEMU: neither its state nor what it writes can be copied`,
    remedy: 'use an emulated or a virtio device instead',
  }));
  const usesVfio = (await process.openFiles()).some((file) => VFIO_FILES.test(file));
  if (usesVfio && !devices.some(({ type }) => type.startsWith('vfio-'))) {
    problems.push({
      where: 'QEMU',
      what: 'it has a VFIO device open',
      remedy: 'take the host device away from the VM',
    });
  }
  return problems;
}

function nameOf({ path }: Device): string {
  return path.slice(path.lastIndexOf('/') + 1);
}

async function ungateableNics({ qmp, process, exceptions: { ungatedNics } }: Examined): Promise<Trouble[]> {
  const nics = await findNics(qmp, process.pid, process);
  return nics.flatMap((nic) => {
    if (nic.ungateable === null || isUngated(nic, ungatedNics)) return [];
    const remedy = `or leave its output unprotected: --ungated ${nic.id}`;
    return [{ where: `NIC ${nic.id}`, what: `its output can't be held: ${nic.ungateable}`, remedy }];
  });
}

async function uncopyableDisks(qmp: QmpClient, exceptions: DiskExceptions): Promise<Trouble[]> {
  const disks = await findDisks(qmp);
  const copied = copiedDisks(disks, exceptions);
  const known = new Set(disks.map(({ id }) => id));
  const problems = [...exceptions.ungatedDisks, ...exceptions.sharedDisks]
    .filter((id) => !known.has(id))
    .map((id) => ({
      where: `disk ${id}`,
      what: 'the VM has none of this name',
      remedy: `its disks: ${[...known].join(', ') || 'none'}`,
    }));
  if (copied.length > DISKS_MAX) {
    problems.push({
      where: 'VM',
      what: `it has ${copied.length} writable disks, at most ${DISKS_MAX} are copied`,
      remedy: 'leave some without a copy: --ungated-disk ID',
    });
  }
  return copied.length === 0 ? problems : [...problems, ...(await unfitDisks(qmp, copied))];
}

async function missingForDisks(qmp: QmpClient, exceptions: DiskExceptions): Promise<Trouble[]> {
  return copiedDisks(await findDisks(qmp), exceptions).length === 0
    ? []
    : missingCommands(qmp, DISK_COMMANDS);
}

/**
 * scsi-block and scsi-generic hand the guest's commands to the host's SCSI device (hw/scsi/scsi-generic.c): nothing of it passes the block layer's mirror. IDE
 * disks: one take-over in some fifty left the guest waiting for a request that had ended (QEMU 7.2, software emulation).
 */
const UNFIT_DISKS: ReadonlyMap<string, string> = new Map([
  [
    'scsi-block',
    "it is SCSI passthrough: the guest's writes don't pass QEMU's block layer and can't be mirrored",
  ],
  [
    'scsi-generic',
    "it is SCSI passthrough: the guest's writes don't pass QEMU's block layer and can't be mirrored",
  ],
  ['ide-hd', 'it is an IDE disk: after a take-over the guest may wait for ever for a request that had ended'],
]);

async function unfitDisks(qmp: QmpClient, disks: readonly Disk[]): Promise<Trouble[]> {
  const devices = await listDevices(qmp);
  return disks.flatMap(({ id, device }) => {
    const found = devices.find(({ path }) => path === device || path === `/machine/peripheral/${device}`);
    const what = UNFIT_DISKS.get(found?.type ?? '');
    if (what === undefined) return [];
    const remedy = `use virtio-blk or scsi-hd for it, or leave it without a copy: --ungated-disk ${id}`;
    return [{ where: `disk ${id}`, what, remedy }];
  });
}
