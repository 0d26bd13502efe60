/** The VM's disks, and which of them the guest can write: nothing copies those yet. */
import type { QmpClient } from '../qmp/client.ts';
import type { BlockDevice } from '../qmp/commands.ts';

export interface Disk {
  /** The device's id, or what QEMU calls the device that has none. */
  id: string;
  file: string;
  sizeBytes: number;
  readOnly: boolean;
  removable: boolean;
}

/** Whatever has a medium. Firmware flash is left out: its content is a RAM block, and QEMU writes it back to the file when the standby first runs. */
export async function findDisks(qmp: QmpClient): Promise<Disk[]> {
  const devices = (await qmp.execute('query-block')).filter((device) => device.inserted !== undefined);
  const flash = await Promise.all(devices.map((device) => isFlash(qmp, device)));
  return devices.filter((_, index) => !flash[index]).map(describe);
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
    file: inserted?.file ?? '',
    sizeBytes: inserted?.image['virtual-size'] ?? 0,
    readOnly: inserted?.ro ?? true,
    removable: device.removable,
  };
}
