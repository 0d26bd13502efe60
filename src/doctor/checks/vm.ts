/** The VM behind --qmp, with the eyes of the agent that would attach to it. */
import { assertStands } from '../../agent/standby-attach.ts';
import { findLeftovers } from '../../vm/gate-wiring.ts';
import { findNics, isUngated } from '../../vm/nics.ts';
import { findProblems, type PreflightCheck, type Problem } from '../../vm/preflight.ts';
import { AGENT_HAS_MONITOR, type Check, type Finding, fail, NotAsked, ok, warn } from '../finding.ts';
import type { Patient } from '../patient.ts';

export const agent: Check = {
  name: 'agent',
  title: 'whether an agent runs for this VM already',
  fault: 'unavailable',
  async run(patient) {
    const { vm } = patient.options;
    if (vm === null) throw new NotAsked('no VM was named (--vm)');
    const running = await patient.agent();
    if (running === null) return ok(`none runs for ${vm} here`);
    const { role, state } = running.status;
    return warn(
      `another colo-agent already listens at ${running.at}: it is ${vm}'s ${role}, ${state}`,
      '`colo-agent status` says how well the VM is protected; what only QEMU can tell is out of reach while that agent has its monitor',
    );
  },
};

export const qmp: Check = {
  name: 'qmp',
  title: "QEMU's monitor",
  fault: 'unavailable',
  async run(patient) {
    try {
      const client = await patient.connectQmp();
      return ok(`${patient.options.qmpPath} answers, QEMU's process is ${client.peer.pid}`);
    } catch (error) {
      if (error instanceof NotAsked) throw error;
      if ((await patient.agent()) !== null) throw new NotAsked(AGENT_HAS_MONITOR);
      return fail(
        (error as Error).message,
        'start QEMU with -qmp unix:PATH,server=on,wait=off, for colo-agent alone, and give that PATH to --qmp',
      );
    }
  },
};

export const qemu: Check = {
  name: 'qemu',
  title: "QEMU's version and commands",
  fault: 'configuration',
  run: (patient) =>
    judge(patient, 'qemu', async () => {
      const { qmp: client } = await patient.vm();
      const { major, minor, micro } = client.version;
      return `version ${major}.${minor}.${micro}, with every command that is needed`;
    }),
};

export const runState: Check = {
  name: 'run-state',
  title: 'what the VM is doing',
  fault: 'configuration',
  async run(patient) {
    const { qmp: client } = await patient.vm();
    const role = await patient.role();
    try {
      if (role === 'secondary') await assertStands(client, patient.options.qmpPath ?? '');
    } catch (error) {
      return fail(
        (error as Error).message,
        'start it with -S; if it is the one to protect, say --role primary',
      );
    }
    return judge(patient, 'run-state', async () => {
      const { status } = await client.execute('query-status');
      return `${status}, fit to be ${role === 'primary' ? 'protected' : 'a standby'}; no migration, no job`;
    });
  },
};

export const devices: Check = {
  name: 'devices',
  title: 'devices that work outside QEMU',
  fault: 'configuration',
  run: (patient) =>
    judge(patient, 'devices', async () => 'none: no VFIO, vhost or other passed-through device'),
};

export const nics: Check = {
  name: 'nics',
  title: "whether the guest's output can be held",
  fault: 'configuration',
  async run(patient) {
    const finding = await judge(patient, 'nics', () => tellNics(patient));
    const { qmp: client } = await patient.vm();
    if (finding.verdict !== 'ok' || !(await findLeftovers(client)).gate) return finding;
    return warn(
      'an output gate is in place: an agent protects this VM, or one that died has left it, and nothing that the guest sends gets out',
      '`colo-agent status` shows the first; `colo-agent primary` takes the gate of the second over',
    );
  },
};

async function tellNics(patient: Patient): Promise<string> {
  const { qmp: client, process, exceptions } = await patient.vm();
  const found = (await findNics(client, process.pid, process)).filter(({ netdev }) => netdev !== null);
  const told = found.map((nic) =>
    isUngated(nic, exceptions.ungatedNics) ? `${nic.id} (left out)` : `${nic.id} (${nic.netdev?.type})`,
  );
  return told.length === 0 ? 'none is connected' : `can be held: ${told.join(', ')}`;
}

/** The problems of an agent in the VM's role; of a standby, those of the primary that it may become come after its own. */
export async function judge(
  patient: Patient,
  check: PreflightCheck,
  tell: () => Promise<string>,
): Promise<Finding> {
  const vm = await patient.vm();
  const role = await patient.role();
  const problems = await findProblems(role, vm, check);
  if (problems.length > 0) return fail(...texts(problems));
  const later = role === 'secondary' ? await findProblems('primary', vm, check) : [];
  if (later.length === 0) return ok(await tell());
  const [found, remedy] = texts(later);
  // With --peer the agent of a standby refuses what it couldn't protect after a take-over.
  return patient.options.peer === null ? warn(`after a take-over: ${found}`, remedy) : fail(found, remedy);
}

function texts(problems: readonly Problem[]): [found: string, remedy: string] {
  return [
    problems.map(({ where, what }) => `${where}: ${what}`).join('; '),
    [...new Set(problems.map(({ remedy }) => remedy))].join('; '),
  ];
}
