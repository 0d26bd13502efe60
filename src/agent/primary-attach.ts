/** Attaching to the VM that is to be protected: what is found out about it, and everything that has to be there before protection can begin. */
import { native, type PrimaryEngine } from '../native/binding.ts';
import { QmpClient } from '../qmp/client.ts';
import { describeVm, type VmDescription } from '../vm/description.ts';
import { findLeftovers } from '../vm/gate-wiring.ts';
import { findNics, isUngated, type Nic } from '../vm/nics.ts';
import { assertProtectable, assertUsableAsStandby } from '../vm/preflight.ts';
import { findRamBlocks } from '../vm/ram-blocks.ts';
import { ShutdownAction } from '../vm/shutdown-action.ts';
import { VmstateFile } from '../vm/vmstate.ts';
import { insist } from './insist.ts';
import type { Log } from './log.ts';
import { PauseGuard } from './pause-guard.ts';
import type { PrimaryAgentOptions } from './primary-agent.ts';
import { PrimaryDisks } from './primary-disks.ts';
import { PrimaryVm } from './primary-vm.ts';
import { RunState } from './run-state.ts';
import { wakeInterrupts } from './wake-interrupts.ts';

export interface PrimaryParts {
  qmp: QmpClient;
  guard: PauseGuard;
  runState: RunState;
  engine: PrimaryEngine;
  vmstate: VmstateFile;
  nics: Nic[];
  disks: PrimaryDisks;
  shutdownAction: ShutdownAction;
  description: VmDescription;
  foundClosedGate: boolean;
}

/** Attaches to the VM behind `options.qmpPath`. On an error everything that was attached is taken off again. */
export async function attachPrimary(options: PrimaryAgentOptions): Promise<PrimaryVm> {
  const qmp = await QmpClient.connect(options.qmpPath);
  let engine: PrimaryEngine | null = null;
  let disks: PrimaryDisks | null = null;
  let guard: PauseGuard | null = null;
  let runState: RunState | null = null;
  let vmstate: VmstateFile | null = null;
  try {
    const pid = qmp.peer.pid;
    await assertProtectable(qmp, pid, options.exceptions);
    if (options.standsByLater) await assertUsableAsStandby(qmp, pid);
    await warnOfStandingVm(qmp, options.log);
    const foundClosedGate = (await findLeftovers(qmp)).gate;
    const nics = (await findNics(qmp, pid)).filter((nic) => !isUngated(nic, options.exceptions.ungatedNics));
    const blocks = await findRamBlocks(qmp, pid);
    const { vm, diskBufferBytes: bufferBytes, exceptions, log } = options;
    guard = await PauseGuard.start(qmp, log);
    const pauses = new RunState(qmp, guard, () => wakeInterrupts(pid, log));
    runState = pauses;
    disks = await PrimaryDisks.attach(qmp, (body) => pauses.whileStopped(body), {
      vm,
      bufferBytes,
      exceptions,
      log,
    });
    const { owner } = disks;
    const description = await describeVm(qmp, pid, blocks, null, { ...exceptions, owner, bufferBytes });
    const shutdownAction = ShutdownAction.of(pid);
    vmstate = await VmstateFile.attach(qmp);
    engine = new native.PrimaryEngine({
      pid,
      blocks,
      threads: options.threads,
      shadow: options.shadow,
      tracker: options.tracker,
      stagingResidentBytes: 64 * 1024 * 1024,
      scrubSliceBytes: options.scrubSliceBytes,
      disks: disks.exports,
    });
    native.startMemoryKeeper();
    return new PrimaryVm(options, {
      qmp,
      guard,
      runState: pauses,
      engine,
      vmstate,
      nics,
      disks,
      shutdownAction,
      description,
      foundClosedGate,
    });
  } catch (error) {
    engine?.close();
    disks?.close();
    await insist(async () => runState?.resume()); // INVARIANT 7: the last who can, since the guard goes next
    // Its own descriptors are closed in any case; a QEMU that doesn't answer any more has nothing to give back.
    await vmstate?.detach(qmp).catch(() => {});
    await guard?.close();
    qmp.close();
    throw error;
  }
}

/** INVARIANT 4: whether a person paused it, or an agent that died while it handed the VM over, can't be told from here; so nothing here resumes it. */
async function warnOfStandingVm(qmp: QmpClient, log: Log): Promise<void> {
  const { status } = await qmp.execute('query-status');
  if (status !== 'paused') return;
  log.warn('the VM stands, and is not resumed by this agent', {
    reason:
      'somebody has paused it, or an agent was killed in a drill, after it had handed the VM over and before the standby answered',
    advice:
      "run `colo-agent status` here: once it says PROTECTED the VM runs nowhere else, and QEMU's `cont` lets it go on; " +
      'before that `cont` may make a second one',
  });
}
