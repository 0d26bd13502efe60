/** `colo-agent doctor`: looks at everything that a protection needs, changes nothing, and says what to do. */
import * as disk from './checks/disks.ts';
import { kernel } from './checks/host.ts';
import { keys } from './checks/keys.ts';
import { libvirt } from './checks/libvirt.ts';
import { listen } from './checks/listen.ts';
import { memory } from './checks/memory.ts';
import * as other from './checks/peer.ts';
import { stateDir } from './checks/state-dir.ts';
import { ptrace, userfaultfd } from './checks/tracking.ts';
import * as machine from './checks/vm.ts';
import { watchdog } from './checks/watchdog.ts';
import { witness } from './checks/witness.ts';
import { type Check, type CheckName, type Finding, fail, NotAsked, needs } from './finding.ts';
import { checksOf } from './hints.ts';
import type { Patient } from './patient.ts';

/** In the order in which they are run and told: what one needs comes before it. */
export const CHECKS: readonly Check[] = [
  kernel,
  machine.agent,
  libvirt,
  machine.qmp,
  machine.qemu,
  machine.runState,
  ptrace,
  userfaultfd,
  machine.devices,
  machine.nics,
  disk.disks,
  disk.replication,
  memory,
  keys,
  other.peer,
  other.match,
  other.cpu,
  other.latency,
  other.bandwidth,
  other.mtu,
  other.clock,
  witness,
  stateDir,
  watchdog,
  listen,
];

/** A QEMU that doesn't answer any more must not hold the rest up. */
const CHECK_MS = 20_000;

/** What `colo-agent doctor --json` prints for each check. Scripts rely on these names; fields are added, never renamed. */
export interface Examined extends Finding {
  name: CheckName;
  title: string;
  fault: Check['fault'];
}

/** Never rejects: a check that throws has failed. */
export async function examine(patient: Patient, checks = CHECKS): Promise<Examined[]> {
  const examined: Examined[] = [];
  for (const check of checks) {
    const { name, title, fault } = check;
    const failed = examined.filter(({ verdict }) => verdict === 'fail').map((each) => each.name);
    examined.push({ name, title, fault, ...(await outcomeOf(check, patient, failed)) });
  }
  return examined;
}

/** `failed`: what was told already. */
async function outcomeOf(check: Check, patient: Patient, failed: readonly CheckName[]): Promise<Finding> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${CHECK_MS / 1000} s`)), CHECK_MS);
  });
  try {
    return await Promise.race([check.run(patient), late]);
  } catch (error) {
    const found = error instanceof Error ? error.message : String(error);
    if (error instanceof NotAsked) return { verdict: 'not asked', found, remedy: '' };
    const told = checksOf(error).find((name) => failed.includes(name));
    if (told !== undefined) return { verdict: 'not asked', found: needs(told), remedy: '' };
    return fail(found, check.remedy ?? `docs/doctor.md says what \`${check.name}\` looks at`);
  } finally {
    clearTimeout(timer);
  }
}
