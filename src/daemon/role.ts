/** Which role a VM has on this host, by what its QEMU says of it. */

import { findQmpSocket } from '../libvirt/domain.ts';
import { QmpClient } from '../qmp/client.ts';
import type { RunStateName } from '../qmp/commands.ts';
import type { VmConfig, VmSource } from './config.ts';
import type { Role } from './vm-option.ts';

/** It runs, or its guest sleeps: a primary's. */
const PRIMARY_STATES: ReadonlySet<RunStateName> = new Set(['running', 'suspended']);
/** It has never run: a standby's. */
const STANDBY_STATES: ReadonlySet<RunStateName> = new Set(['prelaunch', 'inmigrate']);

/** It can't be told, or it isn't one that the configuration allows. `lasting`: it stays so until somebody changes something. */
export class RoleError extends Error {
  readonly lasting: boolean;

  constructor(message: string, lasting: boolean) {
    super(message);
    this.lasting = lasting;
  }
}

/** `before`: the role that this VM's agent had last, where there was one: its VM may stand as it left it. Throws RoleError. */
export async function roleOf(
  config: Pick<VmConfig, 'role' | 'source' | 'args' | 'place'>,
  before: Role | null,
): Promise<Role> {
  // Also of a VM whose role is given: without its QEMU there is nothing to start an agent for.
  const status = await runStateOf(config.source);
  if (config.role !== 'auto') return config.role;
  const role = roleIn(status) ?? before;
  if (role === null) {
    throw new RoleError(
      `its VM is ${status}: that may be a primary's or a standby's; give \`role = "primary"\` or "standby" (${config.place})`,
      false,
    );
  }
  if (config.args[role] !== null) return role;
  throw new RoleError(
    role === 'primary'
      ? `its VM runs, which makes it the primary's, and there is no \`peer\` to protect it at (${config.place})`
      : `its VM waits to be a standby's, and there is no \`listen\` for its primary to connect to (${config.place})`,
    true,
  );
}

function roleIn(status: RunStateName): Role | null {
  if (PRIMARY_STATES.has(status)) return 'primary';
  return STANDBY_STATES.has(status) ? 'standby' : null;
}

async function runStateOf(source: VmSource): Promise<RunStateName> {
  const qmpPath = 'qmp' in source ? source.qmp : await monitorOf(source.libvirt);
  try {
    const qmp = await QmpClient.connect(qmpPath);
    try {
      return (await qmp.execute('query-status')).status;
    } finally {
      qmp.close();
    }
  } catch (error) {
    throw new RoleError(`no answer at \`qmp\` ${qmpPath}: ${(error as Error).message}`, false);
  }
}

async function monitorOf(domain: string): Promise<string> {
  try {
    return await findQmpSocket(domain);
  } catch (error) {
    throw new RoleError(`\`libvirt\` ${domain}: ${(error as Error).message}`, false);
  }
}
