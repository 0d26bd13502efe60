/** Runs of models/arbitration.pml, as spin makes them at random, of a seed. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

const MODEL = path.resolve(import.meta.dirname, '../../models/arbitration.pml');
/** More than any run has. */
const STEPS_MAX = 5000;

/** Of a mutant, and of WITH_REMOVAL. */
const NOT_IN_RUNS = ['lost_reply_is_no', 'key_removed'];

/** Of the model without mutants. */
export const stepNames = [...readFileSync(MODEL, 'utf8').matchAll(/\bSTEP\((\w+)\);/g)]
  .map(([, name]) => name as string)
  .filter((name, index, all) => !NOT_IN_RUNS.includes(name) && all.indexOf(name) === index);

/** What the model says of itself between two steps; by host where there are two of something. */
export interface ModelState {
  key: { generation: number; mode: 'alone' | 'protected'; primary: number };
  gates: [string, string];
  vms: [string, string];
  /** Whether it has a checkpoint to promote. */
  holds: [boolean, boolean];
  /** The last epoch of which output has left. */
  said: number;
}

export interface ModelStep {
  name: string;
  host: 0 | 1;
  /** Null where the step has hurt a property, and ended the run. */
  after: ModelState | null;
}

/** `defines`: of the model. A run that hurts a property ends there; only a mutant's may. */
export function runModel(
  seed: number,
  defines: readonly string[],
): { first: ModelState; steps: ModelStep[] } {
  // spin writes files into the folder in which it stands.
  const cwd = mkdtempSync(path.join(tmpdir(), 'colo-model-'));
  try {
    const args = ['-T', `-n${seed}`, `-u${STEPS_MAX}`, ...defines.map((define) => `-D${define}`), MODEL];
    const { stdout, status, error } = spawnSync('spin', args, { cwd, encoding: 'utf8' });
    if (error) throw error;
    if (status !== 0 && !defines.some((define) => define.startsWith('MUTANT_')))
      throw new Error(`spin ${args.join(' ')} ended with ${status}:\n${stdout.slice(-2000)}`);
    return parse(stdout);
  } finally {
    rmSync(cwd, { recursive: true });
  }
}

/** A state stands before each step and at the end. */
function parse(printed: string): { first: ModelState; steps: ModelStep[] } {
  const states: ModelState[] = [];
  const steps: { name: string; host: 0 | 1 }[] = [];
  for (const line of printed.split('\n')) {
    const [word = '', ...rest] = line.trim().split(/\s+/);
    if (word === 'state') states.push(stateOf(rest));
    else if (word === 'step') steps.push({ name: rest[0] ?? '', host: rest[1] === '0' ? 0 : 1 });
  }
  const [first, ...after] = states;
  if (first === undefined) throw new Error(`spin tells no state:\n${printed.slice(-2000)}`);
  return { first, steps: steps.map((step, index) => ({ ...step, after: after[index] ?? null })) };
}

/** `key 1 0 0 gates 2 0 vms 2 1 held 0 0 said 0` */
function stateOf(words: string[]): ModelState {
  const numbers = words.filter((word) => /^\d+$/.test(word)).map(Number);
  const [generation, mode, primary, gate0, gate1, vm0, vm1, held0, held1, said] = numbers as number[] & {
    length: 10;
  };
  const gate = (at: number | undefined) => ['closed', 'holds', 'open'][at ?? -1] as string;
  const vm = (at: number | undefined) => ['none', 'paused', 'runs', 'stands'][at ?? -1] as string;
  return {
    key: { generation: generation ?? -1, mode: mode === 0 ? 'alone' : 'protected', primary: primary ?? -1 },
    gates: [gate(gate0), gate(gate1)],
    vms: [vm(vm0), vm(vm1)],
    holds: [held0 !== 0, held1 !== 0],
    said: said ?? -1,
  };
}
