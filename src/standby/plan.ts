/** What `colo-agent standby` hands from the primary's host to the standby's: a file of JSON. */

export interface PlannedDisk {
  id: string;
  file: string;
  /** What a file that isn't there yet is made as long as. */
  sizeBytes: number;
}

/** Something that is another on the standby's host, or must be looked at there. */
export interface Difference {
  /** `disk vda`, `serial`, `netdev net0`. */
  what: string;
  primary: string;
  standby: string;
  /** How to say otherwise; null where there is only the folder. */
  option: string | null;
}

export interface StandbyPlan {
  version: 1;
  vm: string;
  command: string[];
  /** Of the standby's QEMU: what `colo-agent secondary --qmp` is given. */
  qmpPath: string;
  /** Where its sockets, logs and disks lie; made when it isn't there. */
  folder: string;
  /** For what nobody else may read: made with mode 0700, or there already and ours. */
  privateFolders: string[];
  /** Made when they aren't there, never overwritten. */
  disks: PlannedDisk[];
  /** Files and devices that must be on the standby's host as they are on the primary's. */
  needed: { what: string; path: string }[];
  differences: Difference[];
}

export class PlanError extends Error {
  override readonly name = 'PlanError';
}

/** Throws PlanError for what isn't a plan. It names a program that is run as whoever reads it: it must come from somebody trusted. */
export function parsePlan(text: string): StandbyPlan {
  let plan: Partial<StandbyPlan>;
  try {
    plan = JSON.parse(text) as Partial<StandbyPlan>;
  } catch (error) {
    throw wrong((error as Error).message);
  }
  if (typeof plan !== 'object' || plan === null) throw wrong('it is no object');
  if (plan.version !== 1) throw wrong(`its version is ${plan.version}, this agent knows 1`);
  if (typeof plan.vm !== 'string' || !/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/.test(plan.vm))
    throw wrong("'vm' is no VM's name");
  const { command, disks, needed, privateFolders = [], differences = [] } = plan;
  if (!isArrayOf(command, (word) => typeof word === 'string') || command.length < 2)
    throw wrong("'command' is no command line");
  if (!isAbsolute(plan.qmpPath) || !isAbsolute(plan.folder))
    throw wrong("'qmpPath' and 'folder' must be absolute paths");
  if (!isArrayOf(disks, isPlannedDisk)) throw wrong("a member of 'disks' lacks id, file or sizeBytes");
  if (!isArrayOf(needed, (entry) => isAbsolute((entry as { path?: unknown } | null)?.path)))
    throw wrong("a member of 'needed' has no path");
  if (!isArrayOf(privateFolders, isAbsolute)) throw wrong("'privateFolders' must be absolute paths");
  if (!isArrayOf(differences, (entry) => typeof entry === 'object' && entry !== null))
    throw wrong("'differences' is no list of them");
  return { ...plan, privateFolders, differences } as StandbyPlan;
}

function wrong(what: string): PlanError {
  return new PlanError(
    `this is no plan for a standby: ${what}. Make one on the primary's host by colo-agent standby --qmp SOCKET --json`,
  );
}

function isArrayOf(value: unknown, accept: (entry: unknown) => boolean): value is unknown[] {
  return Array.isArray(value) && value.every(accept);
}

function isAbsolute(value: unknown): boolean {
  return typeof value === 'string' && value.startsWith('/') && !value.includes('\0');
}

function isPlannedDisk(value: unknown): boolean {
  const { id, file, sizeBytes } = (value ?? {}) as Partial<PlannedDisk>;
  return (
    typeof id === 'string' &&
    isAbsolute(file) &&
    Number.isSafeInteger(sizeBytes) &&
    (sizeBytes as number) >= 0
  );
}
