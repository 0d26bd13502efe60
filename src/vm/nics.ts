/**
 * The VM's NICs and whether the output gate can stand behind each.
 *
 * `info network` tells who is connected to whom, QOM tells the static MAC address, and the process tells about vhost: the kernel (vhost-net) or
 * another process (vhost-user, vDPA) then moves the frames, and no QEMU filter sees them.
 */
import type { QmpClient } from '../qmp/client.ts';
import { optionValues, parseKeyValues } from './command-line.ts';
import { type Device, listDevices } from './device-tree.ts';
import { HostProcess } from './host-process.ts';

export interface Nic {
  /** QEMU's name for it: the device's id, or MODEL.NUMBER. */
  id: string;
  model: string;
  mac: string;
  /** Null when nothing is connected: such a NIC sends nothing and needs no gate. */
  netdev: { id: string; type: string; queues: number } | null;
  /** Why the gate can't hold this NIC's output, or null when it can. */
  ungateable: string | null;
}

export async function findNics(qmp: QmpClient, pid: number, process = new HostProcess(pid)): Promise<Nic[]> {
  const [text, devices] = await Promise.all([
    qmp.execute('human-monitor-command', { 'command-line': 'info network' }),
    listDevices(qmp),
  ]);
  const macs = await configuredMacs(qmp, devices);
  const vhost = await VhostUse.of(process);
  return parseNetwork(text).map(({ id, model, mac, peers }) => {
    const [peer] = peers;
    const netdev = peer ? { id: peer.id, type: peer.type, queues: peers.length } : null;
    // A guest may change the address it uses (`mac`), which must not make two equal VMs look different.
    const configured = netdev ? macs.get(netdev.id) : undefined;
    return { id, model, mac: configured ?? mac, netdev, ungateable: netdev && reasonAgainst(netdev, vhost) };
  });
}

/** A NIC without a netdev needs no gate. `accepted` names NICs by id or by MAC address. */
export function isUngated(nic: Nic, accepted: readonly string[]): boolean {
  return accepted.some((name) => name === nic.id || name.toLowerCase() === nic.mac.toLowerCase());
}

/** MAC addresses by netdev. Multi-queue NICs name one netdev for all queues. */
async function configuredMacs(qmp: QmpClient, devices: Device[]): Promise<Map<string, string>> {
  const nics = devices.filter(
    ({ properties }) => properties.includes('netdev') && properties.includes('mac'),
  );
  const values = await qmp.executeAll(
    nics.flatMap(({ path }) => [
      ['qom-get', { path, property: 'netdev' }] as const,
      ['qom-get', { path, property: 'mac' }] as const,
    ]),
  );
  return new Map(nics.map((_, index) => [String(values[2 * index]), String(values[2 * index + 1])]));
}

const OUTSIDE_QEMU: Record<string, string> = {
  'vhost-user': 'another process moves its frames (vhost-user)',
  'vhost-vdpa': 'the hardware moves its frames (vDPA)',
  hubport: 'it is connected by a hub (-net); use -netdev or -nic',
};

function reasonAgainst(netdev: { id: string; type: string; queues: number }, vhost: VhostUse): string | null {
  const outside = OUTSIDE_QEMU[netdev.type];
  if (outside) return outside;
  if (vhost.mayServe(netdev)) return 'the kernel moves its frames (vhost); start it with vhost=off';
  // net/filter.c: "multiqueue is not supported".
  return netdev.queues > 1
    ? `QEMU has no filters for a netdev of several queues (it has ${netdev.queues})`
    : null;
}

/** Which netdevs vhost-net serves: QMP doesn't tell. */
class VhostUse {
  readonly #inUse: boolean;
  readonly #knownOff: ReadonlySet<string>;

  static async of(process: HostProcess): Promise<VhostUse> {
    const [files, commandLine] = await Promise.all([process.openFiles(), process.commandLine()]);
    const netdevs = optionValues(commandLine, 'netdev').map((value) => parseKeyValues(value, 'type'));
    const off = netdevs.filter((netdev) => netdev.get('vhost') !== 'on' && netdev.get('vhostforce') !== 'on');
    return new VhostUse(
      files.includes('/dev/vhost-net'),
      new Set(off.map((netdev) => netdev.get('id') ?? '')),
    );
  }

  private constructor(inUse: boolean, knownOff: ReadonlySet<string>) {
    this.#inUse = inUse;
    this.#knownOff = knownOff;
  }

  /** True also for a tap that was hot-plugged into a QEMU that uses vhost somewhere: a gate around which frames pass is worse than none. */
  mayServe({ id, type }: { id: string; type: string }): boolean {
    return this.#inUse && type === 'tap' && !this.#knownOff.has(id);
  }
}

interface ListedNic {
  id: string;
  model: string;
  mac: string;
  peers: { id: string; type: string }[];
}

/** A port of a hub is `hub0port1`, or what `-netdev hubport,id=` calls it. */
const CLIENT_LINE = /^(?: \\ )?(?:(\S+): )?(\S+): index=(\d+),type=([^,]+),(.*)$/;
const NIC_INFO = /^model=([^,]+),macaddr=([0-9a-fA-F:]{17})/;

/**
 * The text of `info network` (hmp_info_network in net/net.c): first the hubs with their ports, then each NIC, or each further queue of it
 * (index above 0, nothing else told), with its peer indented below.
 */
export function parseNetwork(text: string): ListedNic[] {
  const nics: ListedNic[] = [];
  let current: ListedNic | null = null;
  for (const line of text.split(/\r?\n/)) {
    const [, hubPort, id, index, type, info] = CLIENT_LINE.exec(line) ?? [];
    if (id === undefined || type === undefined || info === undefined) continue; // a hub's or a filter's own line
    if (type === 'nic' && index === '0') {
      const [, model, mac] = NIC_INFO.exec(info) ?? [];
      if (model === undefined || mac === undefined)
        throw new Error(`cannot understand this line of QEMU's network list: ${line}`);
      const nic: ListedNic = { id, model, mac, peers: hubPort ? [{ id: hubPort, type: 'hubport' }] : [] };
      nics.push(nic);
      current = hubPort ? null : nic;
    } else if (type !== 'nic') {
      if (line.startsWith(' ')) current?.peers.push({ id, type });
      else current = null; // a netdev that nothing is connected to
    }
  }
  return nics;
}
