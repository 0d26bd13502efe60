/** Waiting for what the daemon makes of a VM that it was told to protect. */
import { setTimeout as sleep } from 'node:timers/promises';
import { sendCommand } from '../agent/control-client.ts';
import type { Status } from '../agent/status.ts';
import type { VmSummary } from '../daemon/vm-process.ts';
import { checksOfReason } from '../doctor/hints.ts';
import { type Progress, showProgress } from './progress.ts';

const POLL_MS = 300;
/** A standby that is still busy with the session before is there a moment later. */
const ALONE_MS = 10_000;

/** It runs, and no standby follows. */
const ALONE: readonly string[] = ['EXPOSED', 'BLOCKED'];
/** Its agent has ended, or there is none: it won't be protected before somebody has done something. While one is ENDING another follows. */
const ENDED: readonly string[] = ['WAITING', 'REFUSED', 'STOPPED', 'FENCED'];

/** Shows how far it is, until the VM is PROTECTED, or won't be: resolves with what it is then. Rejects when the daemon doesn't answer. */
export async function awaitProtection(daemon: string, vm: string, json: boolean): Promise<VmSummary> {
  let shown: Progress = { state: 'STARTING', reason: '' };
  const progress = showProgress(() => shown, json);
  try {
    let aloneSinceMs: number | null = null;
    for (;;) {
      const summary = await summaryOf(daemon, vm);
      shown = { ...summary, ...(await copyOf(daemon, summary)) };
      aloneSinceMs = ALONE.includes(summary.state) ? (aloneSinceMs ?? performance.now()) : null;
      const aloneMs = aloneSinceMs === null ? 0 : performance.now() - aloneSinceMs;
      if (isSettled(summary, aloneMs)) return summary;
      await sleep(POLL_MS);
    }
  } finally {
    progress.end();
  }
}

function isSettled({ role, state, reason }: VmSummary, aloneMs: number): boolean {
  if (state === 'PROTECTED' || ENDED.includes(state) || role === 'secondary') return true;
  return aloneMs > ALONE_MS || (state === 'EXPOSED' && checksOfReason(reason).includes('match'));
}

async function summaryOf(daemon: string, vm: string): Promise<VmSummary> {
  const all = (await sendCommand(daemon, 'list')) as VmSummary[];
  const found = all.find((each) => each.vm === vm);
  if (found === undefined) throw new Error(`VM ${vm} was taken out of the configuration meanwhile`);
  return found;
}

/** Of the first copy, while there is one. */
async function copyOf(daemon: string, { vm, state }: VmSummary): Promise<Partial<Progress>> {
  if (state !== 'SYNCING') return {};
  const status = (await sendCommand(daemon, 'status', { vm }).catch(() => null)) as Status | null;
  return status?.role === 'primary'
    ? { syncPercent: status.syncPercent, syncSecondsLeft: status.syncSecondsLeft }
    : {};
}
