/** Attaching to the VM that is to be a standby's: what is found out about it, and whether it is fit to be one. */
import { QmpClient } from '../qmp/client.ts';
import { describeVm, type VmDescription } from '../vm/description.ts';
import { findOverwrittenRanges, type OverwrittenRange } from '../vm/load-overwrites.ts';
import { Mailbox } from '../vm/mailbox.ts';
import { assertProtectable, assertUsableAsStandby } from '../vm/preflight.ts';
import { findRamBlocks, type RamBlock } from '../vm/ram-blocks.ts';
import { StandbyDisks } from '../vm/standby-disks.ts';
import { VmstateFile } from '../vm/vmstate.ts';
import type { SecondaryAgentOptions } from './secondary-agent.ts';
import type { SecondaryTrace } from './secondary-trace.ts';
import { StandbyVm } from './standby-vm.ts';
import type { TakeOvers } from './take-overs.ts';

export interface StandbyParts {
  vm: string;
  /** Its take-over asks a witness. */
  claims: boolean;
  qmp: QmpClient;
  disks: StandbyDisks;
  mailbox: Mailbox;
  blocks: RamBlock[];
  overwritten: OverwrittenRange[];
  description: VmDescription;
}

export class NotAStandbyError extends Error {
  override readonly name = 'NotAStandbyError';
}

/** Attaches to a VM that was started with -S and has not run. Throws NotAStandbyError when it runs, PreflightError for what it isn't fit for. */
export async function attachStandby(
  { vm, qmpPath, overwriteDisks, succeed, witness, log }: SecondaryAgentOptions,
  trace: SecondaryTrace | null,
  takeOvers: TakeOvers,
): Promise<StandbyVm> {
  const qmp = await QmpClient.connect(qmpPath);
  try {
    await assertStands(qmp, qmpPath);
    const pid = qmp.peer.pid;
    await assertUsableAsStandby(qmp, pid);
    // Found out now, not when the VM runs and has no standby.
    if (succeed !== null) await assertProtectable(qmp, pid, succeed);
    const blocks = await findRamBlocks(qmp, pid);
    const description = await describeWithSections(qmp, pid, blocks);
    const overwritten = await findOverwrittenRanges(qmp, blocks);
    const mailbox = await Mailbox.attach(qmp);
    const disks = new StandbyDisks(qmp, overwriteDisks);
    const claims = witness.kind === 'etcd';
    const parts = { vm, claims, qmp, disks, mailbox, blocks, overwritten, description };
    return new StandbyVm(parts, log, trace, takeOvers);
  } catch (error) {
    qmp.close();
    throw error;
  }
}

/** Throws NotAStandbyError for a VM that runs, or that is past being a standby. */
export async function assertStands(qmp: QmpClient, qmpPath: string): Promise<void> {
  const { running, status } = await qmp.execute('query-status');
  if (running || (status !== 'prelaunch' && status !== 'paused')) {
    throw new NotAStandbyError(
      `the VM behind ${qmpPath} is ${status}: a standby must not run. Start it with the primary's command line and -S`,
    );
  }
}

/** The VM has not run, so saving its device state costs nobody anything, and shows which sections a primary's must have. */
async function describeWithSections(qmp: QmpClient, pid: number, blocks: RamBlock[]): Promise<VmDescription> {
  const vmstate = await VmstateFile.attachToStanding(qmp);
  try {
    return await describeVm(qmp, pid, blocks, vmstate);
  } finally {
    await vmstate.detach(qmp);
  }
}
