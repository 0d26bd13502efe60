/**
 * The standby's QEMU command line from the primary's: the same machine and devices, and of what lies outside the machine (disks, sockets, logs, taps) what fits
 * the other host. Pure: what the primary is comes in, a plan comes out.
 */
import { PreflightError } from '../vm/preflight.ts';
import {
  translateChardev,
  translateDisplay,
  translateRedirection,
  translateSpice,
  translateVnc,
} from './channels.ts';
import { commandWords, FILE_OPTIONS, isDropped, parseCommand, type QemuOption } from './command.ts';
import { translateDrives } from './disks.ts';
import { translateDevice, translateMachine, translateObject, translateTable } from './machine.ts';
import { translateNetdev } from './network.ts';
import { OptionValue } from './option-value.ts';
import type { StandbyPlan } from './plan.ts';
import { type PrimaryFacts, type StandbyChoices, Translation } from './translation.ts';

/** Throws PreflightError with everything that can't be taken over, each with what to do. */
export function planStandby(primary: PrimaryFacts, choices: StandbyChoices): StandbyPlan {
  const translation = new Translation(primary, choices);
  const { binary, options } = parseCommand(primary.commandLine, translation.problems);
  comparePluggedDevices(options, translation);
  const kept = withoutForeignMonitors(options, translation).filter(({ name }) => !isDropped(name));
  const withDisks = translateDrives(translateMachine(kept, translation), translation);
  const translated = withDisks.flatMap((option) => translateOption(option, withDisks, translation));
  const complete = withMonitor(translated, translation);
  const withoutSets = withoutFdSets(complete, translation);
  unknownTaps(withoutSets, translation);
  if (translation.problems.length > 0) throw new PreflightError(translation.problems);
  const emulator = choices.emulator ?? binary;
  if (emulator.startsWith('/')) translation.need('QEMU', emulator);
  const { qmpPath, disks, needed, differences } = translation;
  const privateFolders = [...translation.privateFolders];
  const command = commandWords({ binary: emulator, options: withoutSets });
  const { vm, folder } = choices;
  return { version: 1, vm, command, qmpPath, folder, privateFolders, disks, needed, differences };
}

/** What was plugged in or out since the start isn't in the command line, and a machine without it would be another one. */
function comparePluggedDevices(options: readonly QemuOption[], translation: Translation): void {
  const started = options
    .filter(({ name }) => name === 'device')
    .flatMap(({ value }) => new OptionValue(value ?? '', 'driver').get('id') ?? []);
  const { devices } = translation.primary;
  const remedy = "restart the VM, or write the standby's command line by hand (docs/standby.md)";
  for (const id of devices.filter((device) => !started.includes(device)))
    translation.refuse(`device ${id}`, "it was plugged in since QEMU's start", remedy);
  for (const id of started.filter((device) => !devices.includes(device)))
    translation.refuse(`device ${id}`, "it was plugged out since QEMU's start", remedy);
}

const REDIRECTIONS = new Set(['qmp', 'qmp-pretty', 'monitor', 'serial', 'parallel', 'debugcon', 'gdb']);
const CHARDEV_USERS = new Set([...REDIRECTIONS, 'mon', 'device', 'netdev', 'object', 'spice']);
const TABLES = new Set(['fw_cfg', 'smbios', 'acpitable']);

/** A monitor on a descriptor belongs to who started QEMU: libvirt. On the standby's host nobody would be at its other end. */
function withoutForeignMonitors(options: QemuOption[], translation: Translation): QemuOption[] {
  const users = (id: string) =>
    options.filter(({ name, value }) => CHARDEV_USERS.has(name) && refersTo(value ?? '', id));
  const foreign = options.flatMap(({ name, value }) => {
    const chardev = new OptionValue(name === 'chardev' ? (value ?? '') : '', 'backend');
    const id = chardev.get('id') ?? '';
    if (chardev.get('fd') === null) return [];
    const of = users(id);
    return of.length > 0 && of.every((user) => user.name === 'mon') ? [id] : [];
  });
  for (const id of foreign) translation.differ(`monitor ${id}`, 'a descriptor of libvirt', 'none', null);
  return options.filter(({ name, value }) => {
    const parsed = () => new OptionValue(value ?? '', name === 'mon' ? 'chardev' : 'backend');
    if (name === 'mon') return !foreign.includes(parsed().get('chardev') ?? '');
    return name !== 'chardev' || !foreign.includes(parsed().get('id') ?? '');
  });
}

function refersTo(value: string, chardev: string): boolean {
  if (value === `chardev:${chardev}`) return true;
  return new OptionValue(value, 'chardev')
    .entries()
    .some(([key, member]) => key === 'chardev' && member === chardev);
}

/** An option becomes another one, or none. */
function translateOption(
  option: QemuOption,
  all: readonly QemuOption[],
  translation: Translation,
): QemuOption[] {
  const { name, value } = option;
  if (value === null) return [option];
  try {
    const changed = translateValue(option, value, all, translation);
    return changed === null ? [] : [{ name, value: changed }];
  } catch (error) {
    translation.refuse(
      `-${name} ${value}`,
      `it can't be understood: ${(error as Error).message}`,
      'look at the command line',
    );
    return [];
  }
}

function translateValue(
  option: QemuOption,
  value: string,
  all: readonly QemuOption[],
  translation: Translation,
): string | null {
  const { name } = option;
  if (REDIRECTIONS.has(name)) return translateRedirection(name, value, translation);
  if (TABLES.has(name)) return translateTable(name, value, translation);
  // Without a folder it is a file that QEMU looks for among its own.
  if (FILE_OPTIONS.has(name) && (value.includes('/') || name !== 'bios'))
    return translation.need(`-${name}`, value);
  switch (name) {
    case 'device':
      return translateDevice(value, translation);
    case 'netdev':
    case 'nic':
      return translateNetdev(name, value, translation);
    case 'net':
      return translateHub(value, translation);
    case 'chardev':
      return translateChardev(value, translation);
    case 'vnc':
      return translateVnc(value, translation);
    case 'spice':
      return translateSpice(value, translation);
    case 'display':
      return translateDisplay(value, translation);
    case 'pidfile':
    case 'D':
      return translation.place(`-${name}`, value);
    case 'mem-path':
      return translation.need('-mem-path', value);
    case 'object':
      return translateObject(
        value,
        all.flatMap((other) => (other === option ? [] : (other.value ?? []))),
        translation,
      );
    default:
      return value;
  }
}

function translateHub(value: string, translation: Translation): string {
  if (value !== 'none')
    translation.refuse(
      `-net ${value}`,
      'a hub has no place for the output gate',
      'use -netdev or -nic, and restart the VM',
    );
  return value;
}

/** -S, and the monitor that the agent is to use. */
function withMonitor(options: QemuOption[], translation: Translation): QemuOption[] {
  const { differences, primary, qmpPath } = translation;
  const complete = [...options];
  if (!differences.some(({ what }) => what === 'QMP')) {
    translation.differ('QMP', primary.qmpPath, qmpPath, '--qmp-path FILE');
    complete.push({ name: 'qmp', value: `unix:${qmpPath.replaceAll(',', ',,')},server=on,wait=off` });
  }
  if (!complete.some(({ name }) => name === 'S')) complete.push({ name: 'S', value: null });
  return complete;
}

const FD_USERS = new Set([
  'netdev',
  'nic',
  'chardev',
  'drive',
  'blockdev',
  'object',
  'device',
  'serial',
  'parallel',
]);

/** Descriptors that somebody handed to the primary's QEMU, as libvirt does with logs. */
function withoutFdSets(options: QemuOption[], translation: Translation): QemuOption[] {
  const kept = options.filter(({ name }) => name !== 'add-fd');
  for (const { name, value } of kept) {
    if (!FD_USERS.has(name)) continue;
    const given = /\/dev\/fdset\/\d+|(^|[,"])(vhost|rom)?fds?("?[:=])/.exec(value ?? '');
    const where = `-${name} ${value}`;
    if (given && !translation.problems.some((problem) => problem.where === where))
      translation.refuse(
        where,
        'it uses a descriptor that whoever started QEMU handed to it',
        'use a path, and restart the VM',
      );
  }
  return kept;
}

function unknownTaps(options: readonly QemuOption[], translation: Translation): void {
  const ids = options
    .filter(({ name }) => name === 'netdev' || name === 'nic')
    .map(({ value }) => new OptionValue(value ?? '', 'type'))
    .filter((netdev) => netdev.get('type') === 'tap')
    .map((netdev) => netdev.get('id') ?? netdev.get('ifname') ?? '');
  for (const id of translation.choices.taps.keys()) {
    const asNamed = translation.differences.some(({ what }) => what === `netdev ${id}, tap`);
    if (!ids.includes(id) && !asNamed)
      translation.refuse(
        `--tap ${id}`,
        'the VM has no tap of this name',
        `its taps: ${ids.join(', ') || 'none'}`,
      );
  }
}
