/** Wave after wave of a seed's plan, with everything that must hold held against it all the time. */
import { setTimeout as sleep } from 'node:timers/promises';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { monotonicMs } from '../../src/testbed/wait.ts';
import { describeSeen, keepEvidence } from './evidence.ts';
import { begin, type End } from './faults.ts';
import { Journal } from './journal.ts';
import { GuestLife } from './life.ts';
import { describeFault, type PlannedFault, planOf, type Wave } from './plan.ts';
import { countSuccessions, FaultTally } from './tally.ts';
import { World } from './world.ts';

/** From the end of the last fault, or a guest's boot, to PROTECTED. A standby whose disk was full is looked for again after 30 s. */
const PROTECTED_MS = 120_000;
const LOOK_MS = 100;
/** Whatever was killed just now has been noticed. */
const SETTLE_MS = 300;

export interface ChaosOptions {
  seed: number;
  minutes: number;
  /** Gets each line of the story as it happens. */
  print: (line: string) => void;
}

export interface ChaosReport {
  violations: readonly string[];
  summary: string;
  /** What is known of a failure; empty when there is none. */
  evidence: string;
}

/** Rejects only when the world can't be set up or taken down. */
export async function runChaos(options: ChaosOptions): Promise<ChaosReport> {
  const journal = new Journal(options.print);
  const cleanup = new Cleanup();
  try {
    const world = await World.create(cleanup, journal);
    const run = new ChaosRun(world, options);
    await run.toTheEnd();
    const { violations } = journal;
    const summary = run.summary();
    const { waves, seen } = run;
    const happened = { seed: options.seed, waves, summary, seen };
    return { violations, summary, evidence: violations.length > 0 ? keepEvidence(world, happened) : '' };
  } finally {
    await cleanup.run();
  }
}

class ChaosRun {
  readonly #world: World;
  readonly #options: ChaosOptions;
  readonly #life: GuestLife;
  /** Faults that have begun and not ended. */
  readonly #open = new Set<End>();
  readonly #faults = new FaultTally();
  waves = 0;
  /** What the checks saw when the last wave was over, or something was wrong. */
  seen: readonly string[] = [];
  #slowestMs = 0;
  #over = false;

  constructor(world: World, options: ChaosOptions) {
    this.#world = world;
    this.#options = options;
    this.#life = new GuestLife(world);
  }

  async toTheEnd(): Promise<void> {
    const { journal, north, south } = this.#world;
    const watching: Promise<void>[] = [];
    try {
      await this.#life.begin('north');
      watching.push(north.supervise(), south.supervise(), this.#look());
      await this.#peace();
      await this.#waveAfterWave();
    } catch (error) {
      journal.violate((error as Error).message);
    }
    this.seen = describeSeen(this.#world);
    this.#over = true;
    await this.#healAll().catch((error: Error) => journal.violate(error.message));
    await Promise.all([north.end(), south.end()]);
    await Promise.all(watching);
  }

  async #waveAfterWave(): Promise<void> {
    const { journal } = this.#world;
    const endMs = monotonicMs() + this.#options.minutes * 60_000;
    for (const wave of planOf(this.#options.seed)) {
      if (monotonicMs() >= endMs || journal.violations.length > 0) return;
      this.waves++;
      await this.#strike(wave);
      await this.#peace();
    }
  }

  async #strike(wave: Wave): Promise<void> {
    this.#world.journal.note(`--- wave ${this.waves}`);
    await Promise.all(wave.map((planned) => this.#inflict(planned)));
  }

  async #inflict({ fault, afterMs, holdMs }: PlannedFault): Promise<void> {
    const { journal } = this.#world;
    const name = describeFault(fault);
    await sleep(afterMs);
    const end = await begin(fault, this.#world);
    journal.note(end === null ? `nothing to do it to: ${name}` : `begins: ${name}`);
    if (end === null) return;
    this.#faults.add(fault);
    this.#open.add(end);
    if (fault.kind === 'kill' || fault.kind === 'kill-both') return;
    await sleep(holdMs);
    await this.#heal(end);
    journal.note(`ends: ${name}`);
  }

  async #heal(end: End): Promise<void> {
    if (this.#open.delete(end)) await end();
  }

  async #healAll(): Promise<void> {
    for (const end of this.#open) await this.#heal(end);
  }

  /** Resolves when the VM is protected again and all that was seen holds. */
  async #peace(): Promise<void> {
    const { journal, north, south, clients, oneRunner, records } = this.#world;
    await this.#healAll();
    const beganMs = monotonicMs();
    while (journal.violations.length === 0 && !this.#isProtected(beganMs)) {
      // The limits of a boot are its own.
      const waitedMs = monotonicMs() - Math.max(beganMs, this.#life.bornMs);
      if (waitedMs > PROTECTED_MS) {
        const said = `north: ${told(north.status)}, south: ${told(south.status)}`;
        throw new Error(`not PROTECTED within ${PROTECTED_MS} ms; ${said}`);
      }
      await sleep(LOOK_MS);
    }
    this.#slowestMs = Math.max(this.#slowestMs, monotonicMs() - beganMs);
    if (journal.violations.length > 0) return;
    await clients.verify(oneRunner.runners.map(({ firstMs }) => firstMs));
    const wrong = oneRunner.check(records.history);
    if (wrong !== null) journal.violate(wrong);
    for (const host of [north, south]) host.storageWasFull = false;
    journal.note(`protected, ${Math.round(monotonicMs() - beganMs)} ms after the last fault's end`);
  }

  /** As both say when asked since then. */
  #isProtected(sinceMs: number): boolean {
    const { north, south } = this.#world;
    const [a, b] = [north, south].map(({ agent, status, statusMs }) =>
      agent?.running && statusMs > sinceMs + SETTLE_MS ? status?.state : undefined,
    );
    return (a === 'PROTECTED' && b === 'STANDBY') || (b === 'PROTECTED' && a === 'STANDBY');
  }

  /** Everything that can be seen without asking anybody. */
  async #look(): Promise<void> {
    const { clients, frames, records, journal } = this.#world;
    while (!this.#over) {
      try {
        clients.look();
        frames.assertRunning();
        records.assertRunning();
        if (journal.violations.length === 0) await this.#life.look();
      } catch (error) {
        journal.violate((error as Error).message);
      }
      await sleep(LOOK_MS);
    }
  }

  summary(): string {
    const { clients, oneRunner, records, drills, north, south } = this.#world;
    const { losses } = this.#life;
    const { heardCount, verifiedCount } = clients.announcements;
    const { takeOvers, protections } = countSuccessions(records.history);
    return [
      `seed ${this.#options.seed}: ${this.waves} waves, ${this.#faults.total} faults`,
      this.#faults.describe(),
      drills.describe(),
      `${takeOvers} take-overs, ${protections} times protected, in ${records.history.length} records; protected again at most ${Math.round(this.#slowestMs)} ms after a wave`,
      `${oneRunner.frames} frames of ${oneRunner.runners.length} VMs, one after the other; ${oneRunner.lateFrames} of a VM that was superseded came late`,
      `${clients.lines} lines of the stream, the longest silence ${Math.round(clients.silenceMaxMs)} ms; ${heardCount} announcements heard, ${verifiedCount} of them asked for`,
      `a person let a VM go on that a drill had left standing ${north.letGoOn + south.letGoOn} times`,
      `clients had to connect again ${losses.length} times${losses.map((why) => `\n  ${why}`).join('')}`,
    ].join('\n');
  }
}

function told(status: { state: string; reason: string } | null): string {
  return status === null ? 'says nothing' : `${status.state} (${status.reason})`;
}
