/** The primary as it runs: its command line, and what QMP says has become of it. */
import { readlink } from 'node:fs/promises';
import { QmpClient } from '../qmp/client.ts';
import { findDisks } from '../vm/disks.ts';
import { HostProcess } from '../vm/host-process.ts';
import { PreflightError } from '../vm/preflight.ts';
import type { PrimaryDrive, PrimaryFacts } from './translation.ts';

const PERIPHERAL = '/machine/peripheral';

/** Changes nothing; the monitor is held for some milliseconds. Throws QmpError, and what reading /proc gives. */
export async function readPrimary(qmpPath: string): Promise<PrimaryFacts> {
  const qmp = await QmpClient.connect(qmpPath);
  try {
    const process = new HostProcess(qmp.peer.pid);
    const [machine, peripherals] = await qmp.executeAll([
      ['qom-get', { path: '/machine', property: 'type' }],
      ['qom-list', { path: PERIPHERAL }],
    ]);
    const commandLine = await process.commandLine();
    assertQemu(commandLine, qmpPath);
    return {
      commandLine,
      workingFolder: await readlink(`/proc/${qmp.peer.pid}/cwd`),
      qmpPath,
      machine: String(machine).replace(/-machine$/, ''),
      drives: await readDrives(qmp),
      devices: peripherals.filter(({ type }) => type.startsWith('child<')).map(({ name }) => name),
    };
  } finally {
    qmp.close();
  }
}

/** A socket that systemd or a proxy listens on names that process, not QEMU. */
function assertQemu(commandLine: readonly string[], qmpPath: string): void {
  if (commandLine.some((word) => /^--?(machine|M|qmp|mon|nodefaults|accel|drive|device)$/.test(word))) return;
  throw new PreflightError([
    {
      check: null,
      where: qmpPath,
      what: `the process that listens there is no QEMU: ${commandLine[0]}`,
      remedy: 'give a QMP socket that QEMU itself listens on',
    },
  ]);
}

async function readDrives(qmp: QmpClient): Promise<PrimaryDrive[]> {
  const [devices, disks] = await Promise.all([qmp.execute('query-block'), findDisks(qmp)]);
  return devices.flatMap(({ device, qdev = '', inserted }) => {
    if (inserted === undefined) return [];
    const disk = disks.find(
      (candidate) => candidate.device === qdev && candidate.node === inserted['node-name'],
    );
    return [
      {
        id: disk?.id ?? (device || inserted['node-name'] || ''),
        drive: device,
        node: inserted['node-name'] ?? '',
        readOnly: inserted.ro,
        sizeBytes: inserted.image['virtual-size'],
        flash: disk === undefined,
      },
    ];
  });
}
