/**
 * Puts the output gate under the NICs of a running guest, and takes it off again, by QMP alone.
 *
 * A netdev with two filter-redirectors (net/filter-mirror.c) sends every frame of the guest out through one socket, `held`, and takes in what
 * comes back through the other, `release`. Names are never used twice: they carry this process's id and a counter, since QEMU may still hold on to
 * an object that it has just removed.
 */
import { type NativeBinding, native as nativeBinding, type OutputGate } from '../native/binding.ts';
import type { QmpClient } from '../qmp/client.ts';
import { childrenOf } from './device-tree.ts';
import type { Nic } from './nics.ts';

/** All names begin so, by which the leftovers of an agent that died are told. */
export const GATE_PREFIX = 'colo-gate-';

/** What one NIC has in QEMU; each filter has a chardev of the same name. */
interface PortNames {
  netdev: string;
  held: string;
  release: string;
}

export interface GateWiring {
  readonly ports: readonly PortNames[];
}

export interface GateLeftovers {
  /** There is something; guest output may be going nowhere. */
  gate: boolean;
  filters: string[];
  chardevs: string[];
}

const FLUSH_TIMEOUT_MS = 2000;
let installs = 0;

/**
 * Wires every NIC that has a netdev to `gate`, which is in pass-through: frames take the new way from here on. The VM may run. When it throws,
 * whatever it had made is gone again.
 */
export async function install(
  qmp: QmpClient,
  nics: readonly Nic[],
  gate: OutputGate,
  native: Pick<NativeBinding, 'streamSocketPair' | 'closeFd'> = nativeBinding,
): Promise<GateWiring> {
  installs += 1;
  const ports: PortNames[] = [];
  for (const { netdev } of nics) {
    if (!netdev) continue;
    const name = `${GATE_PREFIX}${process.pid}-${installs}-${ports.length}`;
    const port = { netdev: netdev.id, held: `${name}-held`, release: `${name}-release` };
    try {
      await wire(qmp, port, gate, native);
    } catch (error) {
      await undo(qmp, { ports: [...ports, port] }, gate, error as Error);
    }
    ports.push(port);
  }
  return { ports };
}

async function undo(qmp: QmpClient, wiring: GateWiring, gate: OutputGate, error: Error): Promise<never> {
  try {
    await handOver(qmp, wiring, gate);
  } catch (second) {
    throw new AggregateError(
      [error, second],
      `${error.message}; and undoing it: ${(second as Error).message}`,
    );
  }
  throw error;
}

async function wire(
  qmp: QmpClient,
  { netdev, held, release }: PortNames,
  gate: OutputGate,
  native: Pick<NativeBinding, 'streamSocketPair' | 'closeFd'>,
): Promise<void> {
  const heldFd = await addChardev(qmp, held, native);
  const releaseFd = await addChardev(qmp, release, native).catch((error) => {
    native.closeFd(heldFd);
    throw error;
  });
  gate.addPort(heldFd, releaseFd);
  const filter = { 'qom-type': 'filter-redirector', netdev, queue: 'rx', vnet_hdr_support: true };
  // The injecting filter first: frames come back in behind the filter that brings them, so the capturing one must stand before it, or
  // they would be captured again and go round for ever.
  await qmp.execute('object-add', { ...filter, id: release, indev: release });
  await qmp.execute('object-add', { ...filter, id: held, outdev: held });
}

/** Gives QEMU one end of a socket pair as chardev `id`; returns the other end. */
async function addChardev(
  qmp: QmpClient,
  id: string,
  native: Pick<NativeBinding, 'streamSocketPair' | 'closeFd'>,
): Promise<number> {
  const [ours, theirs] = native.streamSocketPair();
  const addr = { type: 'fd', data: { str: id } };
  try {
    await qmp.execute('getfd', { fdname: id }, [theirs]);
    await qmp.execute('chardev-add', { id, backend: { type: 'socket', data: { addr, server: false } } });
    return ours;
  } catch (error) {
    native.closeFd(ours);
    throw error;
  } finally {
    native.closeFd(theirs);
  }
}

/**
 * INVARIANT 7: takes the gate off and gives the NICs back; everything held leaves, in the order in which the guest sent it, if the VM stands
 * while the way changes: otherwise a new frame may overtake one that is on its way through the gate. `standStill` is called when that
 * begins, unless the VM stands already. The caller closes the gate afterwards. Throws when frames may have been lost, after everything has
 * been taken off all the same.
 */
export async function handOver(
  qmp: QmpClient,
  { ports }: GateWiring,
  gate: OutputGate,
  standStill: () => Promise<unknown> = async () => {},
): Promise<void> {
  const held = ports.map((port) => port.held);
  const release = ports.map((port) => port.release);
  gate.open();
  // The bulk leaves while the VM still runs: of one that stands, QEMU keeps frames back until it goes on, and drops all but 10,000 for each
  // netdev (net/queue.c).
  await gate.flush(FLUSH_TIMEOUT_MS);
  await standStill();
  await removeFilters(qmp, held);
  const complete = await gate.flush(FLUSH_TIMEOUT_MS);
  await removeFilters(qmp, release);
  await removeChardevs(qmp, [...held, ...release]);
  if (!complete) throw new Error(`QEMU did not take all held frames back within ${FLUSH_TIMEOUT_MS} ms`);
}

/** What an agent that died has left under this VM. */
export async function findLeftovers(qmp: QmpClient): Promise<GateLeftovers> {
  const [filters, chardevs] = await Promise.all([listFilters(qmp), listChardevs(qmp)]);
  return { filters, chardevs, gate: filters.length > 0 || chardevs.length > 0 };
}

/** Capturing filters go first, so that frames flow at once: `held` sorts before `release`. */
export async function removeLeftovers(qmp: QmpClient): Promise<void> {
  const { filters, chardevs } = await findLeftovers(qmp);
  await removeFilters(qmp, filters.toSorted());
  await removeChardevs(qmp, chardevs);
}

async function listFilters(qmp: QmpClient): Promise<string[]> {
  const objects = childrenOf(await qmp.execute('qom-list', { path: '/objects' }));
  return objects.map(({ name }) => name).filter((name) => name.startsWith(GATE_PREFIX));
}

async function listChardevs(qmp: QmpClient): Promise<string[]> {
  const chardevs = await qmp.execute('query-chardev');
  return chardevs.map(({ label }) => label).filter((label) => label.startsWith(GATE_PREFIX));
}

/** Those that are still there: QEMU takes filters along when their netdev is unplugged. */
async function removeFilters(qmp: QmpClient, names: readonly string[]): Promise<void> {
  const present = await listFilters(qmp);
  for (const id of names.filter((name) => present.includes(name))) await qmp.execute('object-del', { id });
}

async function removeChardevs(qmp: QmpClient, names: readonly string[]): Promise<void> {
  const present = await listChardevs(qmp);
  for (const id of names.filter((name) => present.includes(name)))
    await qmp.execute('chardev-remove', { id });
}
