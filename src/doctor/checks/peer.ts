/** The other host, as far as connecting to it tells, and its doctor, if one answers there. */
import { compare } from '../../vm/compatibility.ts';
import type { VmDescription } from '../../vm/description.ts';
import { type Check, type Finding, fail, NotAsked, ok, warn } from '../finding.ts';
import { mtuTowards, readCpu } from '../portrait.ts';

const REACH =
  'start `colo-agent secondary` (or `colo-agent doctor --listen`) there, open its port in the firewall, and pair the two hosts (docs/security.md)';

export const peer: Check = {
  name: 'peer',
  title: 'whether the other host accepts us',
  fault: 'unavailable',
  async run(patient) {
    let visit: Awaited<ReturnType<typeof patient.visit>>;
    try {
      visit = await patient.visit();
    } catch (error) {
      if (error instanceof NotAsked) throw error;
      return fail((error as Error).message, REACH);
    }
    const { security, portrait, address } = visit;
    const link = security.encryption === 'plain' ? 'plain text' : `${security.cipher}; for ${security.peer}`;
    const who = portrait
      ? `its doctor answers (${portrait.host}, colo-agent ${portrait.version}, Linux ${portrait.kernel})`
      : 'no doctor answers there';
    const found = `${address} accepts us (${link}); ${who}`;
    if (portrait !== null && portrait.version !== patient.options.version)
      return warn(
        `${found}; here it is colo-agent ${patient.options.version}`,
        'run one version on both hosts',
      );
    return ok(found);
  },
};

export const match: Check = {
  name: 'match',
  title: 'whether the two VMs are one machine',
  fault: 'configuration',
  async run(patient) {
    const { portrait } = await patient.consulted();
    const theirs = portrait?.description ?? null;
    if (theirs === null) throw new NotAsked("the peer's doctor knows no VM: give it --qmp");
    const own = await patient.description();
    const primary = (await patient.role()) === 'primary';
    const differences = primary ? asStandby(theirs, own) : compare(theirs, own);
    const machine = `${own.machine}, ${own.cpus.count} x ${own.cpus.types.join(', ')}`;
    if (differences.length > 0)
      return fail(
        differences.join('; '),
        "start the standby with the primary's command line and -S, on a QEMU that isn't older",
      );
    return ok(`both are ${machine}, as far as can be seen without stopping the guest`);
  },
};

/** The standby's description is the foreign one. It is checked as the primary's would be. */
function asStandby(theirs: VmDescription, own: VmDescription): string[] {
  const malformed = compare(theirs, theirs);
  return malformed.length > 0 ? malformed : compare(own, theirs);
}

/** So many flags are named. */
const NAMED_MAX = 8;

export const cpu: Check = {
  name: 'cpu',
  title: "the two hosts' processors",
  fault: 'configuration',
  async run(patient) {
    const { portrait } = await patient.consulted();
    const own = readCpu();
    const theirs = portrait?.cpu ?? own;
    const lacks = (here: readonly string[], there: readonly string[]) => {
      const missing = here.filter((flag) => !there.includes(flag));
      const more = missing.length > NAMED_MAX ? `, and ${missing.length - NAMED_MAX} more` : '';
      return missing.length === 0 ? null : missing.slice(0, NAMED_MAX).join(', ') + more;
    };
    const [there, here] = [lacks(own.flags, theirs.flags), lacks(theirs.flags, own.flags)];
    if (there === null && here === null) return ok(`both hosts: ${own.model}, with the same features`);
    const differences = [
      ...(there === null ? [] : [`the peer's (${theirs.model}) lacks ${there}`]),
      ...(here === null ? [] : [`this one (${own.model}) lacks ${here}`]),
    ];
    return warn(
      differences.join('; '),
      'give both VMs one named CPU model that both hosts have (-cpu), not -cpu host',
    );
  },
};

const LATENCY_WARN_MS = 10;

export const latency: Check = {
  name: 'latency',
  title: 'the round trip to the other host',
  fault: 'unavailable',
  async run(patient) {
    const { medianMs, longestMs } = await (await patient.consulted()).roundTrips();
    const found = `${medianMs.toFixed(2)} ms at the median, ${longestMs.toFixed(2)} ms at most`;
    return medianMs < LATENCY_WARN_MS
      ? ok(found)
      : warn(found, 'use a nearer host, or a better link: all that the guest sends waits for a round trip');
  },
};

const MBIT_WARN = 900;

export const bandwidth: Check = {
  name: 'bandwidth',
  title: 'what the link carries',
  fault: 'unavailable',
  async run(patient) {
    const mbit = (await (await patient.consulted()).measureBandwidth()) / 1e6;
    const found = `${Math.round(mbit)} Mbit/s on one connection`;
    return mbit >= MBIT_WARN
      ? ok(found)
      : warn(
          found,
          'use a link of 1 Gbit/s or more of its own; `colo-agent estimate --link` says what this one would do',
        );
  },
};

export const mtu: Check = {
  name: 'mtu',
  title: 'the largest packet on the way',
  fault: 'configuration',
  async run(patient) {
    const visit = await patient.consulted();
    const [own, theirs] = [await mtuTowards(visit.address), visit.mtu];
    if (own === null || theirs === null)
      throw new NotAsked(`the MTU is unknown ${own === null ? 'here' : 'there'} (ip(8) tells it)`);
    if (own === theirs) return ok(`${own} bytes on both hosts`);
    return warn(
      `${own} bytes here, ${theirs} on the other host: large packets may be lost on the way`,
      'set the same MTU on both hosts and on every switch between them (ip link set DEV mtu N)',
    );
  },
};

const CLOCK_WARN_MS = 1000;
const CLOCK_FAIL_MS = 60_000;

export const clock: Check = {
  name: 'clock',
  title: "the two hosts' clocks",
  fault: 'configuration',
  async run(patient) {
    const { clockAheadMs, clockErrorMs } = await (await patient.consulted()).roundTrips();
    return judgeClock(clockAheadMs, clockErrorMs);
  },
};

export function judgeClock(aheadMs: number, errorMs: number): Finding {
  const apartMs = Math.abs(aheadMs);
  const apart = apartMs < 1000 ? `${apartMs.toFixed(0)} ms` : `${(apartMs / 1000).toFixed(1)} s`;
  const found = `the peer's is ${apart} ${aheadMs < 0 ? 'behind' : 'ahead'} (give or take ${errorMs.toFixed(1)} ms)`;
  if (apartMs - errorMs < CLOCK_WARN_MS) return ok(found);
  const judged = apartMs - errorMs < CLOCK_FAIL_MS ? warn : fail;
  return judged(
    `${found}: the guest's time jumps by as much at a take-over`,
    'run chrony (or another NTP client) on both hosts: by these clocks certificates begin and end, too',
  );
}
