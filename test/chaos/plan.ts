/**
 * What is done to the hosts, in waves: one to three faults that begin within seconds of each other and overlap, then peace until the VM is protected again.
 * Pure: a seed makes one plan.
 */
import type { HostName, LinkName } from '../../src/testbed/hosts.ts';
import { Random } from '../sim/clock.ts';

export type Side = 'primary' | 'standby';
export type Part = 'agent' | 'qemu' | 'host';
export type VmHost = Exclude<HostName, 'witness'>;

/** `down`: whoever connects is told at once. `silent`: nobody is told anything. */
export type Cut = 'down' | 'silent';

export type Fault =
  /** SIGKILL; `host`: agent and QEMU. */
  | { kind: 'kill'; part: Part; side: Side }
  /** Of both hosts at once: the one fault that no standby outlives. */
  | { kind: 'kill-both' }
  /** SIGSTOP, then SIGCONT; `host`: agent and QEMU. */
  | { kind: 'stop'; part: Part; side: Side }
  | { kind: 'cut'; links: readonly LinkName[]; how: Cut }
  /** All links of that host are cut, and nothing else happens meanwhile: only who wins may go on. */
  | { kind: 'isolate'; side: Side; how: Cut }
  /** What `from` sends over the link is lost; the other way works. */
  | { kind: 'one-way'; link: LinkName; from: HostName }
  | { kind: 'etcd'; signal: 'SIGKILL' | 'SIGSTOP'; members: readonly number[] }
  /** Of a host: its VM's disk and its memory of generations. */
  | { kind: 'disk-full'; side: Side }
  /** The wall clock of a host is set. */
  | { kind: 'clock'; host: VmHost; stepS: number }
  /** `colo-agent drill` on the primary: no fault, but nothing may go wrong with one either. */
  | { kind: 'drill' };

export interface PlannedFault {
  fault: Fault;
  /** Since the wave's begin. */
  afterMs: number;
  /** Until it ends; what is killed is brought back at once, by its host. */
  holdMs: number;
}

export type Wave = readonly PlannedFault[];

export const LINKS: readonly LinkName[] = ['north-south', 'north-witness', 'south-witness'];
const HOWS: readonly Cut[] = ['down', 'silent'];
const PARTS: readonly Part[] = ['agent', 'qemu', 'host'];
const SIDES: readonly Side[] = ['primary', 'standby'];

/** A host that stands still for longer than any time-out, or for less. */
const HOLD_MS = { min: 200, max: 5000 };
/** Both sides have noticed, and one of them goes on. */
const ISOLATED_MS = { min: 3000, max: 6000 };
const OFFSET_MS = 2500;
const CLOCK_STEP_S = 3600;
const DRILLS = 4;
const DRILL_AMONG = 5;
/** A drill takes about as long on a small machine, from the command to the guest that runs there. */
const HANDOVER_MS = 800;

/** Each fault of the library once, and drills. */
function deck(random: Random): Fault[] {
  const cuts = [1, 2, 3, 4, 5, 6, 7].map((bits) => LINKS.filter((_, index) => bits & (1 << index)));
  const step = random.pick([-CLOCK_STEP_S, -1, 1, CLOCK_STEP_S]);
  const survivor = random.below(3);
  return [
    ...SIDES.flatMap((side) => PARTS.map((part) => ({ kind: 'kill', part, side }) as const)),
    ...SIDES.flatMap((side) => PARTS.map((part) => ({ kind: 'stop', part, side }) as const)),
    ...cuts.map((links) => ({ kind: 'cut', links, how: random.pick(HOWS) }) as const),
    ...SIDES.flatMap((side) => HOWS.map((how) => ({ kind: 'isolate', side, how }) as const)),
    ...LINKS.map((link) => ({ kind: 'one-way', link, from: random.pick(endsOf(link)) }) as const),
    { kind: 'etcd', signal: 'SIGKILL', members: [random.below(3)] },
    { kind: 'etcd', signal: 'SIGSTOP', members: [random.below(3)] },
    { kind: 'etcd', signal: random.pick(['SIGKILL', 'SIGSTOP']), members: [0, 1, 2] },
    { kind: 'etcd', signal: 'SIGKILL', members: [0, 1, 2].filter((member) => member !== survivor) },
    ...SIDES.map((side) => ({ kind: 'disk-full', side }) as const),
    { kind: 'clock', host: random.pick(['north', 'south']), stepS: step },
    { kind: 'kill-both' },
    ...Array.from({ length: DRILLS }, () => ({ kind: 'drill' }) as const),
  ];
}

export function endsOf(link: LinkName): HostName[] {
  return link.split('-') as HostName[];
}

/** Without an end. Every fault comes once before any comes again, and one of each kind before the others, so that a short run has all kinds. */
export function* planOf(seed: number): Generator<Wave, never> {
  const random = new Random(seed);
  let waiting: Fault[] = [];
  for (;;) {
    const wave: PlannedFault[] = [];
    for (let count = 1 + random.below(3); count > 0; count--) {
      if (waiting.length === 0) waiting = drillSoon(eachKindFirst(shuffled(deck(random), random)), random);
      const index = waiting.findIndex((fault) => fits(fault, wave));
      if (index < 0) break;
      const [fault] = waiting.splice(index, 1) as [Fault];
      wave.push({
        fault,
        afterMs: Math.round(random.between(0, OFFSET_MS)),
        holdMs: holdOf(fault, random),
      });
    }
    yield aimedAtDrill(wave, random).sort((a, b) => a.afterMs - b.afterMs);
  }
}

/** Most of what comes in a wave with a drill strikes while it is under way, or soon after it; the rest when it will. */
function aimedAtDrill(wave: PlannedFault[], random: Random): PlannedFault[] {
  const drill = wave.find(({ fault }) => fault.kind === 'drill');
  if (drill === undefined) return wave;
  return wave.map((planned) =>
    planned === drill || random.below(4) === 0
      ? planned
      : { ...planned, afterMs: Math.round(drill.afterMs + random.between(0, HANDOVER_MS)) },
  );
}

function holdOf({ kind }: Fault, random: Random): number {
  if (kind === 'drill') return 0; // it ends with its answer
  const { min, max } = kind === 'isolate' ? ISOLATED_MS : HOLD_MS;
  return Math.round(random.between(min, max));
}

function eachKindFirst(faults: readonly Fault[]): Fault[] {
  const kinds = faults.map(kindOf);
  const isFirst = (index: number) => kinds.indexOf(kinds[index] as FaultKind) === index;
  return [...faults.filter((_, index) => isFirst(index)), ...faults.filter((_, index) => !isFirst(index))];
}

/** Two minutes of a slow machine have some eight faults: one of them is a drill. */
function drillSoon(faults: Fault[], random: Random): Fault[] {
  const [drill] = faults.splice(
    faults.findIndex(({ kind }) => kind === 'drill'),
    1,
  ) as [Fault];
  faults.splice(random.below(DRILL_AMONG), 0, drill);
  return faults;
}

/** Hosts without a VM are nothing that anything could be done to; and who is cut off shall be the one who loses. */
const ALONE: readonly Fault['kind'][] = ['kill-both', 'isolate'];

/** One that kills in each wave, so that most take-overs find a standby; and nothing twice that the first's end would undo. */
function fits(fault: Fault, wave: Wave): boolean {
  const together = [fault, ...wave.map((planned) => planned.fault)];
  if (wave.length > 0 && together.some(({ kind }) => ALONE.includes(kind))) return false;
  return new Set(together.map(groupOf)).size === together.length;
}

function groupOf({ kind }: Fault): string {
  return kind === 'one-way' ? 'cut' : kind;
}

function shuffled<T>(items: T[], random: Random): T[] {
  for (let last = items.length - 1; last > 0; last--) {
    const other = random.below(last + 1);
    [items[last], items[other]] = [items[other] as T, items[last] as T];
  }
  return items;
}

/** What a run counts, and must be seen to have done. */
export const FAULT_KINDS = [
  'kill -9',
  'kill -9 on both hosts',
  'SIGSTOP',
  'one link cut',
  'links cut together',
  'primary cut off',
  'standby cut off',
  'one direction lost',
  'etcd killed',
  'etcd stopped',
  'disk full',
  'clock stepped',
  'drill',
] as const;

export type FaultKind = (typeof FAULT_KINDS)[number];

export function kindOf(fault: Fault): FaultKind {
  switch (fault.kind) {
    case 'kill':
      return 'kill -9';
    case 'kill-both':
      return 'kill -9 on both hosts';
    case 'stop':
      return 'SIGSTOP';
    case 'cut':
      return fault.links.length === 1 ? 'one link cut' : 'links cut together';
    case 'isolate':
      return `${fault.side} cut off`;
    case 'one-way':
      return 'one direction lost';
    case 'etcd':
      return fault.signal === 'SIGKILL' ? 'etcd killed' : 'etcd stopped';
    case 'disk-full':
      return 'disk full';
    case 'clock':
      return 'clock stepped';
    case 'drill':
      return 'drill';
  }
}

/** A line for each wave. */
export function describeWave(wave: Wave): string {
  return wave
    .map(({ fault, afterMs, holdMs }) => `${describeFault(fault)} (after ${afterMs} ms, for ${holdMs} ms)`)
    .join('; ');
}

export function describeFault(fault: Fault): string {
  switch (fault.kind) {
    case 'kill':
      return `kill -9: the ${fault.side}'s ${partName(fault.part)}`;
    case 'kill-both':
      return 'kill -9: agents and QEMUs of both hosts';
    case 'stop':
      return `SIGSTOP: the ${fault.side}'s ${partName(fault.part)}`;
    case 'cut':
      return `links cut${toldOf(fault.how)}: ${fault.links.join(', ')}`;
    case 'isolate':
      return `the ${fault.side}'s host is cut off${toldOf(fault.how)}`;
    case 'one-way':
      return `${fault.link}: what ${fault.from} sends is lost`;
    case 'etcd':
      return `${fault.signal}: etcd ${fault.members.map((member) => `m${member}`).join(', ')}`;
    case 'disk-full':
      return `the ${fault.side}'s storage is full`;
    case 'clock':
      return `${fault.host}'s wall clock is set by ${fault.stepS} s`;
    case 'drill':
      return 'drill: the primary hands its VM over';
  }
}

function toldOf(how: Cut): string {
  return how === 'silent' ? ', and nobody is told' : '';
}

function partName(part: Part): string {
  return { agent: 'agent', qemu: 'QEMU', host: 'agent and QEMU' }[part];
}
