/** How each fault begins and ends on the real thing. What a fault has no target for, since its host is just coming back, doesn't happen. */
import { run } from '../../src/testbed/child.ts';
import type { HostName, LinkName } from '../../src/testbed/hosts.ts';
import type { ChaosHost } from './host.ts';
import { type Cut, endsOf, type Fault, LINKS, type Part, type Side } from './plan.ts';
import type { World } from './world.ts';

/** Undoes it. */
export type End = () => Promise<void>;

const NOTHING: End = async () => {};

/** Null: there is nothing that it could be done to. */
export async function begin(fault: Fault, world: World): Promise<End | null> {
  switch (fault.kind) {
    case 'kill':
      return kill(targetOf(fault.side, world), fault.part);
    case 'kill-both':
      kill(world.north, 'host');
      return kill(world.south, 'host');
    case 'stop':
      return standStill(targetOf(fault.side, world), fault.part);
    case 'cut':
      return cut(fault.links, fault.how, world);
    case 'isolate':
      return isolate(targetOf(fault.side, world), fault.how, world);
    case 'one-way':
      return loseFrom(fault.from, fault.link, world);
    case 'etcd':
      return stopMembers(fault.members, fault.signal, world);
    case 'disk-full':
      return fillStorage(targetOf(fault.side, world));
    case 'clock':
      return setClock(world.host(fault.host), fault.stepS);
    case 'drill':
      return drill(targetOf('primary', world), world);
  }
}

/** The host on which the guest runs, or the other one; null: it runs on none. */
function targetOf(side: Side, world: World): ChaosHost | null {
  const { runner } = world;
  if (runner === undefined) return null;
  return side === 'primary' ? runner : world.other(runner.name);
}

function processesOf({ agent, vm }: ChaosHost, part: Part) {
  const all = [...(part === 'qemu' ? [] : [agent]), ...(part === 'agent' ? [] : [vm])];
  return all.filter((each) => each?.running) as { kill(signal: NodeJS.Signals): void }[];
}

function kill(host: ChaosHost | null, part: Part): End | null {
  const processes = host === null ? [] : processesOf(host, part);
  for (const each of processes) each.kill('SIGKILL');
  return processes.length > 0 ? NOTHING : null;
}

/** Pauses and continues the same processes, whatever has taken their place meanwhile. */
function standStill(host: ChaosHost | null, part: Part): End | null {
  const processes = host === null ? [] : processesOf(host, part);
  if (host === null || processes.length === 0) return null;
  host.freeze();
  for (const each of processes) each.kill('SIGSTOP');
  return async () => {
    for (const each of processes) each.kill('SIGCONT');
    host.thaw();
  };
}

async function isolate(host: ChaosHost | null, how: Cut, world: World): Promise<End | null> {
  if (host === null) return null;
  const links = LINKS.filter((link) => endsOf(link).includes(host.name));
  return cut(links, how, world);
}

async function cut(links: readonly LinkName[], how: Cut, world: World): Promise<End> {
  if (how === 'silent') return loseAll(links, world);
  const { hosts } = world;
  await hosts.cut(...links);
  return () => hosts.mend(...links);
}

/** A queue that has no place: nothing tells the senders. */
async function loseFrom(from: HostName, link: LinkName, { hosts }: World): Promise<End> {
  const tc = async (...args: string[]) => {
    const [file = '', ...rest] = hosts.prefix(from);
    await run(file, ...rest, 'tc', 'qdisc', ...args);
  };
  await tc('replace', 'dev', link, 'root', 'pfifo', 'limit', '0');
  return () => tc('del', 'dev', link, 'root');
}

async function loseAll(links: readonly LinkName[], world: World): Promise<End> {
  const ends: End[] = [];
  for (const link of links) for (const from of endsOf(link)) ends.push(await loseFrom(from, link, world));
  return async () => {
    for (const end of ends) await end();
  };
}

async function stopMembers(
  members: readonly number[],
  signal: 'SIGKILL' | 'SIGSTOP',
  { etcd }: World,
): Promise<End> {
  for (const member of members) etcd.kill(member, signal);
  return async () => {
    if (signal === 'SIGSTOP') for (const member of members) etcd.kill(member, 'SIGCONT');
    // Together: without a majority none of them becomes healthy.
    else await Promise.all(members.map((member) => etcd.restart(member)));
  };
}

function drill(host: ChaosHost | null, { drills }: World): End | null {
  const agent = host?.agent;
  return agent?.running ? drills.ask(agent) : null;
}

/** And back, as by somebody who sees what he has done. */
function setClock({ clock }: ChaosHost, stepS: number): End {
  clock.step(stepS);
  return async () => clock.step(-stepS);
}

function fillStorage(host: ChaosHost | null): End | null {
  if (host === null) return null;
  host.storageWasFull = true;
  host.storage.fill();
  return async () => {
    host.storage.empty();
    await host.resumeAfterFull();
  };
}
