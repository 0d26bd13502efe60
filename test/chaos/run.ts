/** Wave after wave of a seed's plan, with everything that must hold held against it all the time. */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { monotonicMs, waitFor } from '../../src/testbed/wait.ts';
import { begin, type End } from './faults.ts';
import { Journal } from './journal.ts';
import { GuestLife } from './life.ts';
import { describeFault, type PlannedFault, planOf, type Wave } from './plan.ts';
import { World } from './world.ts';

/** From the end of the last fault to PROTECTED. A standby whose disk was full is looked for again after 30 s, and a guest may have to boot. */
const PROTECTED_MS = 120_000;
const LOOK_MS = 100;
/** Whatever was killed just now has been noticed. */
const SETTLE_MS = 300;
const LOG_LINES = 150;

export interface ChaosOptions {
  seed: number;
  minutes: number;
  /** Gets each line of the story as it happens. */
  print: (line: string) => void;
}

export interface ChaosReport {
  violations: readonly string[];
  /** What happened, line by line, and when something is wrong the agents' logs. */
  story: string;
  summary: string;
}

/** Rejects only when the world can't be set up or taken down. */
export async function runChaos(options: ChaosOptions): Promise<ChaosReport> {
  const journal = new Journal(options.print);
  const cleanup = new Cleanup();
  let run: ChaosRun | null = null;
  let logs = '';
  try {
    run = new ChaosRun(await World.create(cleanup, journal), options);
    await run.toTheEnd();
    logs = run.logs();
  } finally {
    await cleanup.run();
  }
  const { violations } = journal;
  const story = [`seed ${options.seed}`, ...journal.lines, ...(violations.length > 0 ? [logs] : [])];
  return { violations, story: story.join('\n'), summary: run.summary() };
}

class ChaosRun {
  readonly #world: World;
  readonly #options: ChaosOptions;
  readonly #life: GuestLife;
  /** Faults that have begun and not ended. */
  readonly #open = new Set<End>();
  #faults = 0;
  #waves = 0;
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
    this.#over = true;
    await this.#healAll();
    await Promise.all([north.end(), south.end()]);
    await Promise.all(watching);
  }

  async #waveAfterWave(): Promise<void> {
    const { journal } = this.#world;
    const endMs = monotonicMs() + this.#options.minutes * 60_000;
    for (const wave of planOf(this.#options.seed)) {
      if (monotonicMs() >= endMs || journal.violations.length > 0) return;
      this.#waves++;
      await this.#strike(wave);
      await this.#peace();
    }
  }

  async #strike(wave: Wave): Promise<void> {
    this.#world.journal.note(`--- wave ${this.#waves}`);
    await Promise.all(wave.map((planned) => this.#inflict(planned)));
  }

  async #inflict({ fault, afterMs, holdMs }: PlannedFault): Promise<void> {
    const { journal } = this.#world;
    const name = describeFault(fault);
    await sleep(afterMs);
    const end = await begin(fault, this.#world);
    journal.note(end === null ? `nothing to do it to: ${name}` : `begins: ${name}`);
    if (end === null) return;
    this.#faults++;
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
    await waitFor(
      'PROTECTED',
      PROTECTED_MS,
      () => journal.violations.length > 0 || this.#isProtected(beganMs),
      () => ` after the last fault's end; north: ${told(north.status)}, south: ${told(south.status)}`,
    );
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

  logs(): string {
    const { north, south } = this.#world;
    return [...north.logs, ...south.logs]
      .map((file) => `\n== ${path.basename(file)}\n${lastLines(readFileSync(file, 'utf8'))}`)
      .join('\n');
  }

  summary(): string {
    const { clients, oneRunner, records } = this.#world;
    const { losses } = this.#life;
    const { heardCount, verifiedCount } = clients.announcements;
    return [
      `seed ${this.#options.seed}: ${this.#waves} waves, ${this.#faults} faults; ${oneRunner.runners.length} VMs ran one after the other, in ${records.history.length} records`,
      `${clients.lines} lines of the stream without gap or regression, the longest silence ${Math.round(clients.silenceMaxMs)} ms; ${heardCount} announcements heard, ${verifiedCount} of them asked for`,
      `${oneRunner.lateFrames} frames of a VM that was superseded came late; protected again after at most ${Math.round(this.#slowestMs)} ms`,
      `clients had to connect again ${losses.length} times${losses.map((why) => `\n  ${why}`).join('')}`,
    ].join('\n');
  }
}

function told(status: { state: string; reason: string } | null): string {
  return status === null ? 'says nothing' : `${status.state} (${status.reason})`;
}

function lastLines(text: string): string {
  const lines = text.trimEnd().split('\n');
  return lines.slice(-LOG_LINES).join('\n');
}
