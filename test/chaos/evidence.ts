/** What a failure leaves: all that is needed to find its cause, in a folder, and the part of it that a test's output must have. */
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { packageRoot } from '../../src/testbed/guest.ts';
import { describeWave, planOf } from './plan.ts';
import type { World } from './world.ts';

/** Of each host: the one that ended last, the one that runs, and the one before. */
const AGENTS_SHOWN = 3;
const LOG_LINES = 60;
const RECORDS_SHOWN = 20;

export interface Happened {
  seed: number;
  /** Waves that have begun. */
  waves: number;
  summary: string;
  /** By describeSeen(). */
  seen: readonly string[];
}

/** Before the world is taken down. Returns what is to be printed. */
export function keepEvidence(world: World, happened: Happened): string {
  const folder = path.join(packageRoot, '.cache', 'chaos', `seed-${happened.seed}`);
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  for (const log of logsOf(world)) cpSync(log, path.join(folder, path.basename(log)));
  const story = [...tellStory(world, happened), ...happened.seen].join('\n');
  writeFileSync(path.join(folder, 'story.txt'), `${story}\n`);
  return [story, ...endsOfLogs(world), `all logs, whole: ${folder}`].join('\n');
}

function tellStory({ journal }: World, { seed, waves, summary }: Happened): string[] {
  const plan = planOf(seed);
  const planned = Array.from(
    { length: waves },
    (_, index) => `  wave ${index + 1}: ${describeWave(plan.next().value)}`,
  );
  return [`== seed ${seed}`, summary, '== the plan so far', ...planned, '== what happened', ...journal.lines];
}

/** What the checks look at, as it is now. */
export function describeSeen({ north, south, oneRunner, records, journal }: World): string[] {
  return [
    '== the last records at the witness',
    ...records.history.slice(-RECORDS_SHOWN).map((record) => `  ${JSON.stringify(record)}`),
    '== whose frames were on the bridge, and from when on',
    ...oneRunner.runners.map(({ tap, host, firstMs }) => `${journal.timeOf(firstMs)}  ${tap} (${host})`),
    '== what the agents said last',
    ...[north, south].map(({ name, status }) => `  ${name}: ${JSON.stringify(status)}`),
  ];
}

function logsOf({ north, south }: World): string[] {
  return [...north.logs, ...south.logs];
}

function endsOfLogs({ north, south }: World): string[] {
  return [north, south]
    .flatMap(({ logs }) => logs.slice(-AGENTS_SHOWN))
    .map((log) => `== the end of ${path.basename(log)}\n${lastLines(readFileSync(log, 'utf8'))}`);
}

function lastLines(text: string): string {
  return text.trimEnd().split('\n').slice(-LOG_LINES).join('\n');
}
