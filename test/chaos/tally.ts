/** What a run has done and looked at, in figures. Pure. */
import type { VmRecord } from '../../src/protocol/arbiter.ts';
import { FAULT_KINDS, type Fault, type FaultKind, kindOf } from './plan.ts';

/** Counts faults that have begun, by kind. */
export class FaultTally {
  readonly #counts = new Map<FaultKind, number>();

  add(fault: Fault): void {
    const kind = kindOf(fault);
    this.#counts.set(kind, (this.#counts.get(kind) ?? 0) + 1);
  }

  get total(): number {
    return [...this.#counts.values()].reduce((sum, count) => sum + count, 0);
  }

  /** A line, and another when there was nothing of a kind. */
  describe(): string {
    const done = FAULT_KINDS.filter((kind) => this.#counts.has(kind));
    const missing = FAULT_KINDS.filter((kind) => !this.#counts.has(kind));
    const counted = `faults: ${done.map((kind) => `${kind} ${this.#counts.get(kind)}`).join(', ')}`;
    return missing.length === 0 ? counted : `${counted}\nNOT EXERCISED by this run: ${missing.join(', ')}`;
  }
}

/** What the witness's history tells: how often another host won the VM, and how often a standby was agreed on. */
export function countSuccessions(history: readonly VmRecord[]): { takeOvers: number; protections: number } {
  const takeOvers = history.filter(
    ({ mode, primary }, index) => mode === 'alone' && index > 0 && history[index - 1]?.primary !== primary,
  );
  const protections = history.filter(({ mode }) => mode === 'protected');
  return { takeOvers: takeOvers.length, protections: protections.length };
}
