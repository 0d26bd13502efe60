/** The VM's disks: what the guest can write, and on which block node QEMU keeps it. */
import { readlinkSync } from 'node:fs';
import path from 'node:path';
import type { QmpClient } from '../qmp/client.ts';
import type { BlockDevice } from '../qmp/commands.ts';

export interface Disk {
  /** The device's id, or what QEMU calls the device that has none. */
  id: string;
  /** The device's id or its QOM path, as QEMU has it. */
  device: string;
  /** The node that the device uses; block jobs and exports go there. */
  node: string;
  /** `raw`, `qcow2`, ... */
  format: string;
  file: string;
  /** What the guest sees. */
  sizeBytes: number;
  readOnly: boolean;
  removable: boolean;
}

/** As many as READY can name (docs/protocol.md). */
export const DISKS_MAX = 64;

/** Which of the VM's disks the user wants left alone, by id. */
export interface DiskExceptions {
  /** Accepted without a copy: the standby can do without its content. */
  ungatedDisks: readonly string[];
  /** Both hosts reach the same disk. */
  sharedDisks: readonly string[];
}

/** Whatever has a medium. Firmware flash is left out: its content is a RAM block, and QEMU writes it back to the file when the standby first runs. */
export async function findDisks(qmp: QmpClient): Promise<Disk[]> {
  const devices = (await qmp.execute('query-block')).filter((device) => device.inserted !== undefined);
  const flash = await Promise.all(devices.map((device) => isFlash(qmp, device)));
  return devices.filter((_, index) => !flash[index]).map(describe);
}

/** The disks that are copied: all that the guest can write, floppies too, but for what the user has excepted. */
export function copiedDisks(disks: readonly Disk[], exceptions: DiskExceptions): Disk[] {
  const excepted = new Set([...exceptions.ungatedDisks, ...exceptions.sharedDisks]);
  return disks.filter(({ id, readOnly }) => !readOnly && !excepted.has(id));
}

/** Where process `pid`'s disk lies, for who has another working directory. What isn't a path stays a name that nothing has. */
export function diskFile(pid: number, { file }: Disk): string {
  return path.resolve(readlinkSync(`/proc/${pid}/cwd`), file);
}

/** hw/block/pflash_cfi01.c, postload_update_cb: writes all of the flash to its file. */
async function isFlash(qmp: QmpClient, { qdev }: BlockDevice): Promise<boolean> {
  if (!qdev?.startsWith('/machine/')) return false;
  const type = await qmp.execute('qom-get', { path: qdev, property: 'type' });
  return typeof type === 'string' && type.startsWith('cfi.pflash');
}

const PERIPHERAL = '/machine/peripheral/';
/** The block backend of a virtio device is a child of its proxy, which carries the id. */
const CHILD = /\/.*$/;

/** `qdev` is the device's id or its QOM path, `device` the name of the -drive. */
function idOf({ device, qdev = '' }: BlockDevice): string {
  if (qdev.startsWith(PERIPHERAL)) return qdev.slice(PERIPHERAL.length).replace(CHILD, '');
  return qdev !== '' && !qdev.startsWith('/') ? qdev : device || qdev;
}

function describe(device: BlockDevice): Disk {
  const { inserted } = device;
  return {
    id: idOf(device),
    device: device.qdev ?? '',
    node: inserted?.['node-name'] ?? '',
    format: inserted?.drv ?? '',
    file: inserted?.file ?? '',
    sizeBytes: inserted?.image['virtual-size'] ?? 0,
    readOnly: inserted?.ro ?? true,
    removable: device.removable,
  };
}
