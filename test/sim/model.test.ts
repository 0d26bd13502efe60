/** The model of the arbitration is one of this code: what its runs do, the real machines do, and both are in the same state after each step. docs/model.md. */
import { describe, expect, test } from 'vitest';
import { Difference } from './model-host.ts';
import { Replay } from './model-replay.ts';
import { type ModelState, runModel, stepNames } from './model-run.ts';

const RUNS = 400;
/** How often each step is taken at least, in all of them. */
const STEPS_MIN = 5;

/** With fewer failures a run comes further before all of its budgets are spent. */
const BOUNDS = [
  ['FAILURES=0'],
  ['AGENT_DEATHS=0', 'HOST_DEATHS=0'],
  ['AGENT_DEATHS=1', 'HOST_DEATHS=1', 'SESSIONS=4', 'FAILURES=0'],
  ['AGENT_DEATHS=1', 'HOST_DEATHS=0', 'LOSSES=2', 'EPOCHS=5', 'FAILURES=0'],
];

/** Of the runs in which the VM is handed over: the model has other bounds there. */
const HANDOVER = ['WITH_HANDOVER', 'FAILURES=0'];

/** Throws Difference with the steps that led there. */
function replay(
  seed: number,
  defines: readonly string[] = [],
  bounds = BOUNDS[seed % BOUNDS.length] ?? [],
): string[] {
  const { first, steps } = runModel(seed, ['AS_CODED', ...bounds, ...defines]);
  const machines = new Replay(seed);
  const done: string[] = [];
  try {
    compare(machines.state, first);
    for (const step of steps) {
      done.push(`${step.name} ${step.host}`);
      machines.step(step);
      if (step.after !== null) compare(machines.state, step.after);
    }
  } catch (error) {
    (error as Error).message = `run ${seed}: ${(error as Error).message}\nafter ${done.join(', ')}`;
    throw error;
  }
  return steps.map(({ name }) => name);
}

function compare(code: ModelState, model: ModelState): void {
  const [ours, theirs] = [JSON.stringify(code), JSON.stringify(model)];
  if (ours !== theirs) throw new Difference(`the machines are at\n${ours}, the model at\n${theirs}`);
}

test(`${RUNS} runs of the model are runs of the machines`, () => {
  const counts = new Map<string, number>();
  for (let seed = 1; seed <= RUNS; seed++)
    for (const name of [...replay(seed), ...replay(seed, [], HANDOVER)])
      counts.set(name, (counts.get(name) ?? 0) + 1);
  expect(stepNames.filter((name) => (counts.get(name) ?? 0) < STEPS_MIN)).toEqual([]);
});

describe('a model is told from the code that', () => {
  test.each([
    'MUTANT_PROMOTE_WITHOUT_WINNING',
    'MUTANT_OPEN_BEFORE_WINNING',
    'MUTANT_RESTART_OPENS',
    'MUTANT_LOST_REPLY_IS_NO',
    'MUTANT_NO_COMPARE',
    'MUTANT_RELEASE_WITHOUT_RECEIVED',
    'MUTANT_ANSWERS_WHILE_CLAIMING',
    'MUTANT_CLAIMS_FIRST',
  ])('is %s', (mutant) => {
    const refused = () => {
      for (let seed = 1; seed <= RUNS; seed++) replay(seed, [mutant]);
    };
    expect(refused).toThrow(Difference);
  });

  test.each(['MUTANT_HANDOVER_GOES_ON', 'MUTANT_TOOK_OVER_FIRST'])('is %s', (mutant) => {
    const refused = () => {
      for (let seed = 1; seed <= RUNS; seed++) replay(seed, [mutant], ['FAILURES=0']);
    };
    expect(refused).toThrow(Difference);
  });
});
