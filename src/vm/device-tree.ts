/** The machine's devices as QEMU's object model (QOM) lists them. */
import type { QmpClient } from '../qmp/client.ts';
import type { QomProperty } from '../qmp/commands.ts';

export interface Device {
  /** QOM path, e.g. `/machine/peripheral/net0`. */
  path: string;
  type: string;
  properties: readonly string[];
}

/** Devices with an id, devices without one, and those that the board itself brings. */
const CONTAINERS = ['/machine/peripheral', '/machine/peripheral-anon', '/machine/unattached'] as const;

const CHILD = /^child<(.+)>$/;
/** `/machine/unattached` holds memory regions and interrupt lines too; devices are named so. */
const BOARD_DEVICE = /^device\[\d+\]$/;

/** All devices, in the order in which the containers list them. */
export async function listDevices(qmp: QmpClient): Promise<Device[]> {
  const listings = await qmp.executeAll(CONTAINERS.map((path) => ['qom-list', { path }] as const));
  const found = CONTAINERS.flatMap((container, index) => {
    return childrenOf(listings[index] ?? []).map(({ name, type }) => ({
      path: `${container}/${name}`,
      type,
    }));
  }).filter(
    ({ path }) =>
      !path.startsWith('/machine/unattached/') ||
      BOARD_DEVICE.test(path.slice('/machine/unattached/'.length)),
  );
  const properties = await qmp.executeAll(found.map(({ path }) => ['qom-list', { path }] as const));
  return found.map((device, index) => ({
    ...device,
    properties: (properties[index] ?? []).map(({ name }) => name),
  }));
}

/** The children among an object's properties. */
export function childrenOf(properties: readonly QomProperty[]): { name: string; type: string }[] {
  return properties.flatMap(({ name, type }) => {
    const child = CHILD.exec(type)?.[1];
    return child === undefined ? [] : [{ name, type: child }];
  });
}
