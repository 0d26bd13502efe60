import type { DrillReport, DrillTimes } from '../agent/drill-report.ts';

const STEPS: readonly [keyof DrillTimes, string][] = [
  ['lastCheckpoint', 'last checkpoint begun'],
  ['stopped', 'guest stopped for it'],
  ['transferred', 'sent'],
  ['received', 'whole on the standby'],
  ['loaded', 'loaded there'],
  ['handedOver', 'VM stands here, handed over'],
  ['disksSynced', 'disks synced there'],
  ['claimed', 'generation won at the witness'],
  ['runs', 'guest runs there, its network open'],
];

/** A drill's report for people: a line for each step, in the order in which they happened, then what it comes to. */
export function drillText({ vm, node, generation, epoch, outageMs, times }: DrillReport): string {
  const steps = STEPS.flatMap(([key, what]): [number, string][] => {
    const atMs = times[key];
    return atMs === null ? [] : [[atMs, what]];
  });
  const lines = steps.sort(([a], [b]) => a - b).map(([atMs, what]) => `${milliseconds(atMs)}  ${what}`);
  return [
    ...lines,
    `${milliseconds(outageMs)}  the guest's outage`,
    `${vm} runs on ${node}, in generation ${generation}, from checkpoint ${epoch}`,
  ].join('\n');
}

function milliseconds(ms: number): string {
  return `${ms.toFixed(1).padStart(10)} ms`;
}
