/** What `colo-agent top` shows of each VM: what its agent says, and rates, which are differences of the counters of two looks. */
import type { Status } from '../agent/status.ts';

/** One look at a VM. Without a status: an agent that doesn't run, or doesn't answer, and what is known all the same. */
export interface Look {
  vm: string;
  /** Monotonic. */
  atMs: number;
  status: Status | null;
  role: Status['role'] | null;
  state: string;
  reason: string;
}

export interface Row {
  vm: string;
  role: Status['role'] | null;
  state: string;
  reason: string;
  /** Of the last checkpoint. */
  ageMs: number | null;
  /** How long the guest stands for a checkpoint. */
  pauseMs: { p50: number | null; p99: number | null };
  dirtyPagesPerSecond: number | null;
  /** Sent by a primary, received by a standby. */
  bytesPerSecond: number | null;
  heldBytes: number | null;
}

export const SORTS = ['name', 'pause', 'dirty'] as const;
export type Sort = (typeof SORTS)[number];

/** `before`: the look before this one; null at first. */
export function rowOf(now: Look, before: Look | null): Row {
  const { vm, role, state, reason, status } = now;
  const none = { p50: null, p99: null };
  const primary = status?.role === 'primary' ? status : null;
  return {
    vm,
    role,
    state,
    reason,
    ageMs: status?.lastCheckpointAgeMs ?? null,
    pauseMs: primary === null ? none : { p50: primary.pauseMs.p50, p99: primary.pauseMs.p99 },
    dirtyPagesPerSecond: rate(now, before, dirtyPages),
    bytesPerSecond: rate(now, before, carriedBytes),
    heldBytes: primary?.heldBytes ?? null,
  };
}

/** The greatest first, those without a figure last; among equals by name. */
export function sorted(rows: readonly Row[], by: Sort): Row[] {
  const figure = ({ pauseMs, dirtyPagesPerSecond }: Row) =>
    (by === 'pause' ? pauseMs.p99 : by === 'dirty' ? dirtyPagesPerSecond : null) ?? -1;
  return rows.toSorted((a, b) => figure(b) - figure(a) || (a.vm < b.vm ? -1 : 1));
}

function dirtyPages(status: Status): number | null {
  return status.role === 'primary' ? status.dirtyPages.total : null;
}

function carriedBytes(status: Status): number {
  return status.role === 'primary' ? status.sentBytes : status.receivedBytes;
}

/** Counters of one agent in one role alone can be compared: another begins anew. */
function rate(now: Look, before: Look | null, counter: (status: Status) => number | null): number | null {
  const [newer, older] = [now.status, before?.status ?? null];
  if (newer === null || older === null || before === null) return null;
  if (newer.agentPid !== older.agentPid || newer.role !== older.role) return null;
  const [last, first] = [counter(newer), counter(older)];
  const seconds = (now.atMs - before.atMs) / 1000;
  if (last === null || first === null || last < first || seconds <= 0) return null;
  return (last - first) / seconds;
}
