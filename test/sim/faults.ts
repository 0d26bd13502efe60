/** What goes wrong in a world, when, and what a person does about it. */
import type { StateWord } from '../../src/protocol/machine.ts';
import { type Victim, violated, type World } from './world.ts';

const RESTART_MS = [20, 600] as const;

/** One run: faults at random moments, then calm, in which everything must come back to what it should be. */
export function live(world: World): void {
  const { random, clock } = world;
  const menu = MENUS[world.options.failover];
  for (let faults = random.below(4); faults > 0; faults--) {
    const fault = random.pick(menu);
    clock.after(random.between(20, 700), () => fault(world));
  }
  employPerson(world);
  keepAgentsRunning(world);
  world.runUntil(() => false, 750);
  world.calm = true;
  if (!world.runUntil(() => settled(world), 60_000)) {
    const { primary, secondary } = world;
    const p = `${primary?.machine.state} (${primary?.machine.reason})`;
    throw new Error(
      `the world doesn't settle: P ${p}, S ${secondary?.machine.state} (${secondary?.machine.reason})`,
    );
  }
  requireSurvivor(world);
}

/** INVARIANT 7: arbitration alone, whatever the network does and whatever step of a take-over fails, never costs the guest its life. */
function requireSurvivor(world: World): void {
  const { pvm, svm, deaths } = world;
  const harmless = world.witnessed && deaths === 0 && !pvm.shutDown;
  if (harmless && !pvm.running && !svm.running) violated(7, 'nobody died, and nobody runs');
}

type Fault = (world: World) => void;

const kill =
  (victim: Victim): Fault =>
  (world) =>
    world.kill(victim);

const pause: Fault = (world) => {
  const { pvm, primary } = world;
  if (!pvm.running) return;
  pvm.running = false;
  world.trace('* somebody pauses the VM');
  primary?.dispatch({ type: 'vm-paused' });
  world.clock.after(world.random.between(10, 200), () => resume(world));
};

/** Also in the middle of a pause of ours. */
const resume: Fault = (world) => {
  const { pvm, primary } = world;
  if (!pvm.alive || pvm.running || pvm.shutDown || pvm.left) return;
  world.trace('* somebody resumes the VM');
  world.resumedByOthers = true;
  if (primary !== null) primary.stopped = false;
  pvm.running = true;
  primary?.dispatch({ type: 'vm-resumed' });
};

const shutDown: Fault = (world) => {
  const { pvm, primary } = world;
  // A guest whose agent is dead shuts down as QEMU was told to: it ends.
  if (!pvm.running || !primary?.alive || primary.finished) return;
  world.trace('* the guest shuts down');
  pvm.running = false;
  pvm.shutDown = true;
  primary.dispatch({ type: 'vm-shutdown', gone: false });
};

/** Without a witness that is a person's word that nobody has taken over; nor may one that stands still do so yet, by an order that it has got. */
const stop: Fault = (world) => {
  const ordered = world.ordered !== null && world.ordered === world.secondary;
  if (world.witnessed || !(world.svm.running || ordered))
    world.primary?.dispatch({ type: 'command', command: 'stop' });
};

export const drill: Fault = (world) => world.primary?.dispatch({ type: 'command', command: 'drill' });

const breakBulk: Fault = (world) => {
  for (const channel of world.bulk) channel.reset();
};

const ORDERLY: Fault[] = [
  pause,
  resume,
  shutDown,
  (world) => world.primary?.dispatch({ type: 'vm-reset' }),
  (world) => world.primary?.dispatch({ type: 'pressure' }),
  (world) => world.primary?.dispatch({ type: 'command', command: 'checkpoint' }),
  stop,
  drill,
  drill,
  breakBulk,
  (world) => world.primary?.hang(world.random.between(50, 600)),
  (world) => world.secondary?.hang(world.random.between(50, 600)),
];

const DEATHS: Fault[] = (['P-agent', 'P-qemu', 'P-host', 'S-agent', 'S-qemu', 'S-host'] as const).map(kill);

/** The next sessions are cut off early: whatever was begun with a standby that has lost its memory must not count. */
const crashAndCuts: Fault = (world) => {
  if (world.svm.running) return;
  world.kill('S-host');
  for (let cuts = world.random.below(4); cuts >= 0; cuts--)
    world.clock.after(world.random.between(30, 900), () => world.control?.reset());
};

const swapDisk: Fault = (world) => {
  world.swapStandbyDisk();
  world.clock.after(world.random.between(200, 700), () => world.swapStandbyDisk());
};

/** What a standby that takes over by itself can tell from the primary's death. */
const WITHOUT_WITNESS: Fault[] = [...ORDERLY, ...DEATHS, ...DEATHS];

const EVERYTHING: Fault[] = [
  ...WITHOUT_WITNESS,
  crashAndCuts,
  crashAndCuts,
  swapDisk,
  swapDisk,
  (world) => world.control?.reset(),
  (world) => world.heartbeats?.reset(),
  (world) => world.heartbeats?.blackhole(),
  (world) => {
    world.control?.reset();
    breakBulk(world);
  },
  (world) => {
    world.trace('* the network is cut');
    world.control?.blackhole();
    world.heartbeats?.blackhole();
    for (const channel of world.bulk) channel.blackhole();
    world.partitioned = true;
    world.clock.after(world.random.between(50, 800), () => {
      world.partitioned = false;
    });
  },
  (world) => world.primary?.stall(world.random.between(50, 600)),
  (world) => world.secondary?.stall(world.random.between(50, 600)),
];

const silence =
  (sides: readonly (0 | 1)[]): Fault =>
  (world) => {
    const { etcd, clock, random } = world;
    world.trace(`* the witness is out of reach for ${sides}`);
    for (const side of sides) etcd.cutOff[side] = true;
    clock.after(random.between(50, 900), () => {
      for (const side of sides) etcd.cutOff[side] = false;
    });
  };

const stopWitness: Fault = (world) => {
  world.trace('* the witness is down');
  world.etcd.down = true;
  world.clock.after(world.random.between(50, 900), () => {
    world.etcd.down = false;
  });
};

const forget: Fault = (world) => world.etcd.forget(world.random.between(50, 900));

/** The link is cut for good enough that both sides ask. */
export const cutLink: Fault = (world) => {
  world.trace('* the link is cut');
  world.control?.blackhole();
  world.heartbeats?.blackhole();
  for (const channel of world.bulk) channel.blackhole();
  world.partitioned = true;
  world.clock.after(world.random.between(400, 1500), () => {
    world.partitioned = false;
  });
};

const WITH_WITNESS: Fault[] = [
  ...EVERYTHING,
  ...DEATHS,
  cutLink,
  cutLink,
  cutLink,
  stopWitness,
  stopWitness,
  silence([0]),
  silence([1]),
  silence([0, 1]),
  (world) => {
    stopWitness(world);
    cutLink(world);
  },
  forget,
  (world) => {
    forget(world);
    cutLink(world);
  },
];

const MENUS = { claimed: WITH_WITNESS, granted: WITHOUT_WITNESS, ordered: EVERYTHING };

/** With a witness a person may order a failover at any moment, the witness knows better; and by force when the primary's VM is dead. Without: orders a failover when the primary is really out of action and nobody has seen more than the standby knows. */
export function employPerson(world: World): void {
  world.clock.after(world.random.between(20, 150), () => {
    const { secondary, pvm, gate, random } = world;
    if (world.witnessed) {
      if (random.chance(0.2)) secondary?.dispatch({ type: 'command', command: 'failover' });
      if (
        !pvm.alive &&
        random.chance(0.05) &&
        secondary !== null &&
        secondary.heldDevice >= world.newestSeen
      ) {
        world.forced[1] = true;
        secondary.dispatch({ type: 'command', command: 'force-failover' });
      }
      employPerson(world);
      return;
    }
    if (standsForNobody(world)) world.primary?.dispatch({ type: 'command', command: 'force-stop' });
    const cutOff = !pvm.alive || gate?.dead === true;
    if (cutOff && secondary?.alive && secondary.heldDevice >= world.newestSeen) {
      world.ordered = secondary;
      secondary.dispatch({ type: 'command', command: 'force-failover' });
    }
    employPerson(world);
  });
}

/** Handed over to a standby that could not let it run: neither side can know that the other doesn't. */
function standsForNobody({ primary, secondary, pvm, svm }: World): boolean {
  const stands = primary?.machine.state === 'BLOCKED' && primary.stopped && pvm.alive && !pvm.running;
  return stands && !svm.running && secondary?.machine.state === 'BLOCKED';
}

/** Agents (and the standby's QEMU) that have died are started again; a protected VM that has died is not. */
export function keepAgentsRunning(world: World): void {
  const { clock, random } = world;
  clock.after(random.between(...RESTART_MS), () => {
    const { primary, secondary, pvm } = world;
    if (primary !== null && !primary.alive && pvm.alive && !pvm.left) {
      // What the dead agent left standing only a person can judge: a guest that has shut down is done with, any other should run.
      if (pvm.shutDown) world.kill('P-qemu');
      else pvm.running = true;
      if (pvm.alive) world.startPrimary();
    }
    const standbyGone = secondary !== null && (!secondary.alive || secondary.finished);
    if (standbyGone && !world.svm.running && !pvm.shutDown) world.startSecondary();
    keepAgentsRunning(world);
  });
}

const CLAIMING: StateWord[] = ['TAKING-OVER', 'BLOCKED'];

export function settled(world: World): boolean {
  const { primary, secondary, pvm, svm } = world;
  if (primary === null || secondary === null) return false;
  // Nobody is left to tell the primary that it was superseded; it stays cut off.
  if (svm.running && !secondary.alive && primary.machine.state === 'BLOCKED') return true;
  // The standby has won, or its VM wouldn't be left; unless it has died since, it may not have heard of it yet.
  if (pvm.left) return world.deaths > 0 || !CLAIMING.includes(secondary.machine.state);
  if (pvm.shutDown && pvm.alive) return false;
  if (!pvm.alive) {
    // A checkpoint that the witness knows to be stale has been given up; one that it was never told of waits for a person.
    const nothingHeld = secondary.heldDevice < world.newestSeen || secondary.machine.epoch === 0;
    const record = world.etcd.entry.record;
    const untold = record?.mode === 'alone' && record.primary === world.nodes[0];
    if (svm.running) return !secondary.alive || !world.forced[1] || record?.primary === world.nodes[1];
    return pvm.shutDown || secondary.finished || nothingHeld || untold;
  }
  if (!primary.alive) return false;
  if (primary.finished) return pvm.running && world.gate === null;
  return primary.machine.state === 'PROTECTED' && secondary.machine.state === 'STANDBY' && pvm.running;
}
