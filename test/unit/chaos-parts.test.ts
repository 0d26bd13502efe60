/** The parts of test/chaos that judge or plan: what they must notice, they notice. */
import { describe, expect, test } from 'vitest';
import { ControlError } from '../../src/agent/control-server.ts';
import type { VmRecord } from '../../src/protocol/arbiter.ts';
import type { AgentProcess } from '../chaos/agent-process.ts';
import { Announcements } from '../chaos/announcements.ts';
import { Drills } from '../chaos/drills.ts';
import { Journal } from '../chaos/journal.ts';
import { judgeLoss } from '../chaos/loss.ts';
import { type Burst, OneRunner } from '../chaos/one-runner.ts';
import { describeFault, FAULT_KINDS, kindOf, planOf, type VmHost, type Wave } from '../chaos/plan.ts';
import { countSuccessions, FaultTally } from '../chaos/tally.ts';

function waves(seed: number, count: number): Wave[] {
  const plan = planOf(seed);
  return Array.from({ length: count }, () => plan.next().value);
}

describe('the plan', () => {
  test('is the same for the same seed, and another for another', () => {
    expect(waves(1, 50)).toEqual(waves(1, 50));
    expect(waves(1, 50)).not.toEqual(waves(2, 50));
  });

  const faultsOf = (seed: number, count: number) =>
    waves(seed, count).flatMap((wave) => wave.map(({ fault }) => fault));

  test('begins with one of each kind', () => {
    for (let seed = 0; seed < 50; seed++)
      expect(new Set(faultsOf(seed, FAULT_KINDS.length).map(kindOf)).size).toBe(FAULT_KINDS.length);
  });

  test('has each part of each host killed and stopped, and both storages filled, within its first 30 waves', () => {
    const seen = (seed: number) => {
      const sided = faultsOf(seed, 30).filter(({ kind }) => ['kill', 'stop', 'disk-full'].includes(kind));
      return new Set(sided.map(describeFault)).size;
    };
    expect([1, 2, 3, 4, 5].map(seen)).toEqual([14, 14, 14, 14, 14]);
  });

  test('kills at most once in a wave, and does nothing else in one that kills both hosts or cuts one off', () => {
    for (const wave of waves(3, 500)) {
      const kills = wave.filter(({ fault }) => fault.kind.startsWith('kill'));
      expect(kills.length).toBeLessThanOrEqual(1);
      if (wave.some(({ fault }) => ['kill-both', 'isolate'].includes(fault.kind)))
        expect(wave).toHaveLength(1);
    }
  });

  test('has a drill within its first five waves', () => {
    for (let seed = 0; seed < 50; seed++) expect(faultsOf(seed, 5).map(kindOf)).toContain('drill');
  });

  test('has drills by themselves, and kills, cuts and stand-stills that strike within a second of one', () => {
    const withDrill = waves(3, 500).filter((wave) => wave.some(({ fault }) => fault.kind === 'drill'));
    expect(withDrill.some((wave) => wave.length === 1)).toBe(true);
    const struck = withDrill.flatMap((wave) => {
      const atMs = wave.find(({ fault }) => fault.kind === 'drill')?.afterMs ?? 0;
      return wave.filter(({ afterMs }) => afterMs > atMs && afterMs <= atMs + 1000).map(({ fault }) => fault);
    });
    const kinds = new Set(struck.map(kindOf));
    for (const kind of ['kill -9', 'SIGSTOP', 'one link cut', 'links cut together'] as const)
      expect(kinds).toContain(kind);
    const killed = struck.filter(({ kind }) => kind === 'kill').map(describeFault);
    expect(new Set(killed).size).toBe(6);
  });

  test('cuts a host off for long enough that somebody has to decide', () => {
    const held = waves(3, 500).flatMap((wave) => wave.filter(({ fault }) => fault.kind === 'isolate'));
    expect(held.length).toBeGreaterThan(10);
    expect(Math.min(...held.map(({ holdMs }) => holdMs))).toBeGreaterThanOrEqual(3000);
  });
});

describe('the tally', () => {
  test('counts faults by kind, and names the kinds that there were none of', () => {
    const tally = new FaultTally();
    tally.add({ kind: 'cut', links: ['north-south'], how: 'silent' });
    tally.add({ kind: 'cut', links: ['north-witness'], how: 'down' });
    tally.add({ kind: 'kill-both' });
    expect(tally.total).toBe(3);
    const [counted, missing] = tally.describe().split('\n');
    expect(counted).toBe('faults: kill -9 on both hosts 1, one link cut 2');
    expect(missing).toMatch(
      /^NOT EXERCISED by this run: kill -9, SIGSTOP, links cut together, .*clock stepped, drill$/,
    );
  });

  test('counts take-overs and protections by what the witness held', () => {
    const record = (mode: VmRecord['mode'], primary: VmHost): VmRecord => ({
      format: 1,
      generation: 1,
      mode,
      primary,
      secondary: null,
      claim: '0'.repeat(32),
    });
    const history = [
      record('alone', 'north'),
      record('protected', 'north'),
      record('alone', 'south'),
      record('protected', 'south'),
      record('alone', 'south'),
    ];
    expect(countSuccessions(history)).toEqual({ takeOvers: 1, protections: 2 });
  });
});

describe('drills', () => {
  const answers = {
    done: async () => ({ node: 'south', outageMs: 130 }),
    refused: async () => {
      throw new ControlError('refused', 'the VM is SYNCING');
    },
    died: async () => {
      throw new ControlError('no-agent', 'closed the connection without an answer');
    },
  };

  test('are counted by their answers, and a refusal is no violation', async () => {
    const journal = new Journal(() => {});
    const drills = new Drills(journal);
    for (const drill of Object.values(answers)) await drills.ask({ drill } as unknown as AgentProcess)();
    expect(drills.describe()).toBe(
      'drills: 3 asked for, 1 done, 1 refused or come to nothing, 1 whose agent died over it',
    );
    expect(journal.violations).toEqual([]);
    expect(journal.lines.join('\n')).toMatch(
      /runs on south, and stood for 130 ms\n.*is refused: the VM is SYNCING\n.*no answer: closed/,
    );
  });
});

describe('one runner', () => {
  const wentOnMs = { north: Number.NEGATIVE_INFINITY, south: Number.NEGATIVE_INFINITY };
  const hostOf = (tap: string): VmHost => (tap.startsWith('n') ? 'north' : 'south');
  const burst = (tap: string, firstMs: number): Burst => ({ tap, firstMs, lastMs: firstMs + 50, frames: 3 });
  const alone = (primary: VmHost, generation: number): VmRecord => ({
    format: 1,
    generation,
    mode: 'alone',
    primary,
    secondary: null,
    claim: '0'.repeat(32),
  });
  function seen(bursts: Burst[], wentOn: Record<VmHost, number> = wentOnMs) {
    const runners = new OneRunner(hostOf, (host) => wentOn[host]);
    return {
      runners,
      breaches: bursts.map((each) => runners.push(each)).filter((breach) => breach !== null),
    };
  }

  test('one after the other, each in its generation', () => {
    const { runners, breaches } = seen([
      burst('n0', 0),
      burst('n0', 100),
      burst('s0', 200),
      burst('n1', 9000),
    ]);
    expect(breaches).toEqual([]);
    expect(runners.check([alone('north', 1), alone('south', 2), alone('north', 3)])).toBeNull();
  });

  test('a VM that goes on sending beside its successor is a breach', () => {
    const { breaches } = seen([burst('n0', 0), burst('s0', 100), burst('n0', 1500)]);
    expect(breaches).toEqual([
      'two VMs answer: 3 frames of n0 (north) 1450 ms after s0 (south) began to send',
    ]);
  });

  test('a VM that was handed over may run again, once it is the standby, and in a generation of its own', () => {
    const { runners } = seen([burst('n0', 0), burst('s0', 100)]);
    runners.standsBy('n0', 3000);
    expect(runners.push(burst('n0', 2000))).toMatch(/two VMs answer: 3 frames of n0/);
    expect(runners.push(burst('n0', 5000))).toBeNull();
    expect(runners.push(burst('s0', 7000))).toMatch(/two VMs answer: 3 frames of s0/);
    expect(runners.check([alone('north', 1), alone('south', 2)])).toMatch(/n0 \(north\) sent without/);
    expect(runners.check([alone('north', 1), alone('south', 2), alone('north', 3)])).toBeNull();
  });

  test('what lay in the socket of a process that stood still is late, for a moment', () => {
    const wentOn = { ...wentOnMs, north: 6000 };
    const late = seen([burst('n0', 0), burst('s0', 100), burst('n0', 6100)], wentOn);
    expect(late.breaches).toEqual([]);
    expect(late.runners.lateFrames).toBe(3);
    expect(seen([burst('n0', 0), burst('s0', 100), burst('n0', 7100)], wentOn).breaches).toHaveLength(1);
  });

  test('a VM that sends without a generation of its own is a breach', () => {
    const { runners } = seen([burst('n0', 0), burst('s0', 100)]);
    expect(runners.check([alone('north', 1), alone('north', 2)])).toMatch(/s0 \(south\) sent without/);
    expect(runners.check([alone('south', 1), alone('north', 2)])).toMatch(/s0 \(south\) sent without/);
    const again = seen([burst('n0', 0), burst('n1', 100)]);
    expect(again.runners.check([alone('north', 1)])).toMatch(/n1 \(north\) sent without/);
    again.runners.giveUp('n0');
    expect(again.runners.check([alone('north', 1)])).toBeNull();
  });
});

describe('a loss of the guest', () => {
  const claim = '0'.repeat(32);
  const shared: VmRecord = {
    format: 1,
    generation: 5,
    mode: 'protected',
    primary: 'north',
    secondary: 'south',
    claim,
  };
  const seen = { runner: 'north', standby: 'south', incarnation: 2, checkpointOf: 5 } as const;
  const now = { incarnation: 2, storageWasFull: false };

  test('is a violation when a living standby held the checkpoint that the record speaks of, or has won it', () => {
    const won: VmRecord = { ...shared, generation: 6, mode: 'alone', primary: 'south', secondary: null };
    for (const record of [shared, won])
      expect(judgeLoss(record, seen, now)).toEqual({
        rightly: false,
        why: expect.stringMatching(/^south lives and held a checkpoint of generation 5; the witness has \{/),
      });
  });

  test.each([
    ['the runner was alone', { ...shared, mode: 'alone', secondary: null }, seen, now, /north ran it alone/],
    ['the standby died', shared, seen, { ...now, incarnation: 3 }, /on south died, too/],
    ['there was no checkpoint', shared, { ...seen, checkpointOf: null }, now, /held no checkpoint/],
    [
      'it was of another generation',
      shared,
      { ...seen, checkpointOf: 4 },
      now,
      /no checkpoint of generation 5/,
    ],
    ['the disk was full', shared, seen, { ...now, storageWasFull: true }, /storage of south was full/],
  ] as const)('is none when %s', (_, record, last, standby, why) => {
    expect(judgeLoss(record, last, standby)).toEqual({ rightly: true, why: expect.stringMatching(why) });
  });
});

describe('announcements', () => {
  test('a number with two secrets was made by two VMs', () => {
    const announcements = new Announcements();
    expect(announcements.onHeard('1 77', 0)).toBeNull();
    expect(announcements.onHeard('1 77', 1)).toBeNull();
    expect(announcements.onHeard('1 78', 2)).toMatch(/1 was heard with two secrets/);
    announcements.forget();
    expect(announcements.onHeard('1 79', 3)).toBeNull();
  });

  test('everything that was heard before a switch is asked for, and what the guest does not know is told', () => {
    const announcements = new Announcements();
    for (let sequence = 1; sequence <= 100; sequence++)
      announcements.onHeard(`${sequence} ${1000 + sequence}`, sequence * 100);
    const asked = announcements.toVerify([5000]);
    expect(asked).toEqual(expect.arrayContaining([21, 50, 64, 96]));
    expect(asked).not.toContain(51);
    for (const sequence of asked)
      announcements.onAnswer(sequence === 50 ? '50 unknown' : `${sequence} ${1000 + sequence}`);
    expect(announcements.verified(asked)).toEqual([
      "announcement 50 was heard outside, and the guest's secret for it is unknown",
    ]);
    expect(announcements.toVerify([5000])).toEqual([]);
  });
});
