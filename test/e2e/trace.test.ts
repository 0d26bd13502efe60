/** `--trace` of both agents: every checkpoint has all of its steps, in their order, and the two traces are on one clock. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { TestNetwork } from '../../src/testbed/network.ts';
import { parseTrace, type TraceEvent } from '../../src/testbed/trace.ts';
import { moreCheckpoints, type Protection, protect } from './support/protection.ts';

const CHECKPOINTS = 20;
/** The agents' own clock is laid over CLOCK_MONOTONIC to within this. */
const CLOCK_ERROR_US = 50;

const cleanup = new Cleanup();
const folder = mkdtempSync(path.join(tmpdir(), 'colo-trace-'));
cleanup.add(() => rmSync(folder, { recursive: true }));
let network: TestNetwork;

beforeAll(async () => {
  network = cleanup.own(await TestNetwork.create());
});
afterAll(() => cleanup.run());

interface Step {
  begin: number;
  end: number;
  args: TraceEvent['args'];
}

/** The steps of a trace by epoch and name; each happens once in an epoch. */
class Steps {
  readonly events: TraceEvent[];
  readonly #byName = new Map<string, Step>();

  constructor(events: TraceEvent[]) {
    this.events = events;
    for (const { ph, name, ts, dur = 0, args } of events) {
      if (ph !== 'X' || args['epoch'] === undefined) continue;
      const key = `${name} ${args['epoch']}`;
      expect(this.#byName.has(key), `${key} twice`).toBe(false);
      this.#byName.set(key, { begin: ts, end: ts + dur, args });
    }
  }

  of(name: string, epoch: number): Step {
    const step = this.#byName.get(`${name} ${epoch}`);
    if (!step) throw new Error(`the trace has no "${name}" of epoch ${epoch}`);
    return step;
  }

  epochsOf(name: string): number[] {
    return this.events.filter((event) => event.name === name).map(({ args }) => Number(args['epoch']));
  }
}

function traced(name: string): { args: string[]; read: () => string; steps: () => Steps } {
  const file = path.join(folder, name);
  const read = () => readFileSync(file, 'utf8');
  return { args: ['--trace', file], read, steps: () => new Steps(parseTrace(read())) };
}

/** Each begins when the one before has ended, or later. */
function expectInOrder(steps: Step[]): void {
  for (const [index, step] of steps.entries()) {
    const before = steps[index - 1];
    if (before) expect(step.begin).toBeGreaterThanOrEqual(before.end - CLOCK_ERROR_US);
    expect(step.end).toBeGreaterThanOrEqual(step.begin);
  }
}

const length = ({ begin, end }: Step) => end - begin;

describe.each(['pipelined', 'strict'])('a %s protection', (mode) => {
  const [primaryTrace, secondaryTrace] = [traced(`${mode}-primary`), traced(`${mode}-secondary`)];
  let primary: Steps;
  let secondary: Steps;
  let epochs: number[];

  beforeAll(async () => {
    const { primary: agent, secondary: standby } = await protect(cleanup, {
      guest: {
        guest: 'linux',
        network,
        append: 'colo.services=announce,diskcheck colo.dirty=300,20',
        disks: [{ id: 'd0', sizeMiB: 16, cache: 'none', aio: 'threads' }],
      },
      primaryArgs: ['--mode', mode, ...primaryTrace.args],
      secondaryArgs: secondaryTrace.args,
    });
    await moreCheckpoints(agent, CHECKPOINTS);
    await agent.command('stop');
    await agent.exited;
    await standby.command('stop');
    await standby.exited;
    for (const { read } of [primaryTrace, secondaryTrace]) expect(JSON.parse(read())).toBeInstanceOf(Array);
    primary = primaryTrace.steps();
    secondary = secondaryTrace.steps();
    // The last ones may have been on their way when the protection ended.
    epochs = primary.epochsOf('wait for LOADED');
  });

  test('has every checkpoint', () => {
    expect(epochs.length).toBeGreaterThanOrEqual(CHECKPOINTS);
    expect(epochs).toEqual(epochs.map((_, index) => index + 1));
  });

  test('the steps inside each pause are all there, in order, and fit into it', () => {
    for (const epoch of epochs) {
      const of = (name: string) => primary.of(name, epoch);
      const [pause, stop, save, cont] = [of('pause'), of('stop'), of('save'), of('cont')];
      const [seal, scan, copy] = [of('seal'), of('scan'), of('copy')];
      expectInOrder([stop, save, cont]);
      expectInOrder([stop, seal, scan, copy, cont]);
      expect([stop.begin, cont.end]).toEqual([pause.begin, pause.end]);
      // QEMU saves while the agent copies: what can't be added up lies on two tracks.
      expect(length(stop) + length(save) + length(cont)).toBeLessThanOrEqual(length(pause));
      expect(length(seal) + length(scan) + length(copy)).toBeLessThanOrEqual(length(pause));
      expect(pause.args['guestStoodUs']).toBeGreaterThan(0);
      expect(save.args['vmstateBytes']).toBeGreaterThan(0);
      expect(copy.args['pages']).toBeGreaterThan(0);
    }
    expect(primary.epochsOf('checkpoint failed')).toEqual([]);
  });

  test('on its way to the standby each is encoded, sent, received, released and loaded', () => {
    for (const epoch of epochs) {
      const of = (name: string) => primary.of(name, epoch);
      const [sent, received, loaded] = ['encode and send', 'wait for RECEIVED', 'wait for LOADED'].map(
        of,
      ) as [Step, Step, Step];
      expectInOrder([of('copy'), sent]);
      expectInOrder([received, loaded]);
      expectInOrder([received, of('release of the gate')]);
      if (mode === 'strict') expectInOrder([loaded, of('cont')]);
      else expectInOrder([{ ...of('cont'), end: of('cont').begin }, sent]);
      expect(sent.args['wireBytes']).toBeGreaterThan(0);
    }
  });

  test('the standby stages, commits and loads each, between what the primary saw of it', () => {
    for (const epoch of epochs) {
      const of = (name: string) => secondary.of(name, epoch);
      const staged = of('receive and stage');
      const loaded = of('load');
      const commit = ['commit RAM', 'commit disks', 'commit device state', 'scrub'].map(of);
      expectInOrder([staged, ...commit, loaded]);
      expect(staged.begin).toBeGreaterThanOrEqual(
        primary.of('encode and send', epoch).begin - CLOCK_ERROR_US,
      );
      expect(staged.end).toBeLessThanOrEqual(primary.of('wait for RECEIVED', epoch).end + CLOCK_ERROR_US);
      expect(loaded.end).toBeLessThanOrEqual(primary.of('wait for LOADED', epoch).end + CLOCK_ERROR_US);
      expect(staged.args['wireBytes']).toBe(primary.of('encode and send', epoch).args['wireBytes']);
    }
  });

  test('the session and its states are there, and every track has its name', () => {
    const names = primary.events.map(({ name }) => name);
    expect(names).toEqual(
      expect.arrayContaining(['bulk', 'gate', 'disks', 'protect', 'first copy', 'hand-over']),
    );
    const states = primary.events.filter(({ name }) => name === 'state').map(({ args }) => args['detail']);
    expect(states).toContainEqual(expect.stringMatching(/^PROTECTED/));
    for (const { events } of [primary, secondary]) {
      const named = events.filter(({ name }) => name === 'thread_name').map(({ tid }) => tid);
      expect(new Set(events.map(({ tid }) => tid))).toEqual(new Set(named));
    }
    const processes = [primary, secondary].map(({ events }) =>
      events.find(({ name }) => name === 'process_name'),
    );
    expect(processes.map((event) => event?.args['name'])).toEqual([
      'colo-agent primary e2e',
      'colo-agent secondary e2e',
    ]);
  });
});

describe('a failover', () => {
  const [primaryTrace, secondaryTrace] = [traced('killed'), traced('took-over')];
  let protection: Protection;

  test("has its steps on the standby's trace, and the trace of the primary that was killed can be read", async () => {
    protection = await protect(cleanup, {
      guest: { guest: 'baremetal', disks: [{ id: 'd0', sizeMiB: 1, cache: 'none', aio: 'threads' }] },
      primaryArgs: primaryTrace.args,
      secondaryArgs: ['--witness', 'none', ...secondaryTrace.args],
    });
    const { primary, primaryVm, secondary } = protection;
    await moreCheckpoints(primary, CHECKPOINTS);
    primary.kill();
    primaryVm.kill();
    await secondary.waitState('RUNNING', 60_000);
    await secondary.command('stop');
    await secondary.exited;

    const steps = secondaryTrace.steps();
    const takeOver = steps.events.find(({ name }) => name === 'take-over') as TraceEvent;
    const epoch = Number(takeOver.args['epoch']);
    const within = ['sync disks', 'record disks', 'cont'].map((name) => steps.of(name, epoch));
    expectInOrder(within);
    const { begin, end } = steps.of('take-over', epoch);
    expect(within[0]?.begin).toBeGreaterThanOrEqual(begin);
    expect(within[2]?.end).toBeLessThanOrEqual(end);
    expect(steps.of('load', epoch).end).toBeLessThanOrEqual(within[0]?.begin as number);
    expect(steps.events.map(({ name }) => name)).toContain('primary lost');

    expect(() => JSON.parse(primaryTrace.read())).toThrow();
    expect(primaryTrace.steps().epochsOf('pause').length).toBeGreaterThan(0);
  });
});

test('a full disk costs the trace, said once, and not the protection', async () => {
  const { primary, secondary } = await protect(cleanup, {
    guest: { guest: 'baremetal' },
    primaryArgs: ['--trace', '/dev/full'],
    secondaryArgs: ['--trace', '/dev/full'],
  });
  await moreCheckpoints(primary, CHECKPOINTS);
  for (const agent of [primary, secondary]) {
    const said = agent.log().match(/the trace ends here: it could not be written.*ENOSPC/g);
    expect(said).toHaveLength(1);
    await agent.command('stop');
    expect((await agent.exited).code).toBe(0);
  }
});
