/**
 * What is done to the hosts, in waves: one to three faults that begin within seconds of each other and overlap, then peace until the VM is protected again.
 * Pure: a seed makes one plan.
 */
import type { HostName, LinkName } from '../../src/testbed/hosts.ts';
import { Random } from '../sim/clock.ts';

export type Side = 'primary' | 'standby';
export type Part = 'agent' | 'qemu' | 'host';
export type VmHost = Exclude<HostName, 'witness'>;

export type Fault =
  /** SIGKILL; `host`: agent and QEMU. */
  | { kind: 'kill'; part: Part; side: Side }
  /** Of both hosts at once: the one fault that no standby outlives. */
  | { kind: 'kill-both' }
  /** SIGSTOP, then SIGCONT; `host`: agent and QEMU. */
  | { kind: 'stop'; part: Part; side: Side }
  | { kind: 'cut'; links: readonly LinkName[] }
  /** What `from` sends over the link is lost; the other way works. */
  | { kind: 'one-way'; link: LinkName; from: HostName }
  | { kind: 'etcd'; signal: 'SIGKILL' | 'SIGSTOP'; members: readonly number[] }
  /** Of the standby's host: its disks and its memory of generations. */
  | { kind: 'disk-full' }
  /** The wall clock of a host is set. */
  | { kind: 'clock'; host: VmHost; stepS: number };

export interface PlannedFault {
  fault: Fault;
  /** Since the wave's begin. */
  afterMs: number;
  /** Until it ends; what is killed is brought back at once, by its host. */
  holdMs: number;
}

export type Wave = readonly PlannedFault[];

const LINKS: readonly LinkName[] = ['north-south', 'north-witness', 'south-witness'];
const PARTS: readonly Part[] = ['agent', 'qemu', 'host'];
const SIDES: readonly Side[] = ['primary', 'standby'];

/** A host that stands still for longer than any time-out, or for less. */
const HOLD_MS = { min: 200, max: 5000 };
const OFFSET_MS = 2500;
const CLOCK_STEP_S = 3600;

/** Each fault of the library once. */
function deck(random: Random): Fault[] {
  const cuts = [1, 2, 3, 4, 5, 6, 7].map((bits) => LINKS.filter((_, index) => bits & (1 << index)));
  const step = random.pick([-CLOCK_STEP_S, -1, 1, CLOCK_STEP_S]);
  const survivor = random.below(3);
  return [
    ...SIDES.flatMap((side) => PARTS.map((part) => ({ kind: 'kill', part, side }) as const)),
    ...SIDES.flatMap((side) => PARTS.map((part) => ({ kind: 'stop', part, side }) as const)),
    ...cuts.map((links) => ({ kind: 'cut', links }) as const),
    ...LINKS.map((link) => ({ kind: 'one-way', link, from: random.pick(endsOf(link)) }) as const),
    { kind: 'etcd', signal: 'SIGKILL', members: [random.below(3)] },
    { kind: 'etcd', signal: 'SIGSTOP', members: [random.below(3)] },
    { kind: 'etcd', signal: random.pick(['SIGKILL', 'SIGSTOP']), members: [0, 1, 2] },
    { kind: 'etcd', signal: 'SIGKILL', members: [0, 1, 2].filter((member) => member !== survivor) },
    { kind: 'disk-full' },
    { kind: 'clock', host: random.pick(['north', 'south']), stepS: step },
    { kind: 'kill-both' },
  ];
}

function endsOf(link: LinkName): HostName[] {
  return link.split('-') as HostName[];
}

/** Without an end. Every fault comes once before any comes again. */
export function* planOf(seed: number): Generator<Wave, never> {
  const random = new Random(seed);
  let waiting: Fault[] = [];
  for (;;) {
    const wave: PlannedFault[] = [];
    for (let count = 1 + random.below(3); count > 0; count--) {
      if (waiting.length === 0) waiting = shuffled(deck(random), random);
      const index = waiting.findIndex((fault) => fits(fault, wave));
      if (index < 0) break;
      const [fault] = waiting.splice(index, 1) as [Fault];
      wave.push({
        fault,
        afterMs: Math.round(random.between(0, OFFSET_MS)),
        holdMs: Math.round(random.between(HOLD_MS.min, HOLD_MS.max)),
      });
    }
    yield wave.sort((a, b) => a.afterMs - b.afterMs);
  }
}

/** One that kills in each wave, so that most take-overs find a standby; and nothing twice that the first's end would undo. */
function fits(fault: Fault, wave: Wave): boolean {
  return wave.every(({ fault: other }) => groupOf(other) !== groupOf(fault));
}

function groupOf({ kind }: Fault): string {
  if (kind === 'kill-both') return 'kill';
  return kind === 'one-way' ? 'cut' : kind;
}

function shuffled<T>(items: T[], random: Random): T[] {
  for (let last = items.length - 1; last > 0; last--) {
    const other = random.below(last + 1);
    [items[last], items[other]] = [items[other] as T, items[last] as T];
  }
  return items;
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
      return `links cut: ${fault.links.join(', ')}`;
    case 'one-way':
      return `${fault.link}: what ${fault.from} sends is lost`;
    case 'etcd':
      return `${fault.signal}: etcd ${fault.members.map((member) => `m${member}`).join(', ')}`;
    case 'disk-full':
      return "the standby's storage is full";
    case 'clock':
      return `${fault.host}'s wall clock is set by ${fault.stepS} s`;
  }
}

function partName(part: Part): string {
  return { agent: 'agent', qemu: 'QEMU', host: 'agent and QEMU' }[part];
}
