/** What happened to the VMs of this host, as far back as it is kept: in memory, and in a file that outlives the daemon. */
import {
  appendFileSync,
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  statSync,
} from 'node:fs';
import path from 'node:path';
import type { TakeOverRecord } from '../agent/take-over-record.ts';
import { ConfigError } from './toml.ts';

/** A line of `colo-agent events --json`. Scripts rely on these names. */
export interface DaemonEvent {
  /** Grows by one with each event, over restarts of the daemon, too. */
  id: number;
  time: string;
  vm: string;
  role: 'primary' | 'secondary' | null;
  state: string;
  reason: string;
  generation: number | null;
  epoch: number | null;
  /** Of a take-over that has come to its end. */
  takeOver?: TakeOverRecord;
}

const EVENTS_MAX = 1000;
const TAKE_OVERS_MAX = 32;
const FILE_BYTES_MAX = 4 << 20;

export class EventStore {
  readonly #file: string | null;
  #events: DaemonEvent[] = [];
  /** Kept apart: an agent that fails again and again must not push another VM's out. */
  #takeOvers: DaemonEvent[] = [];
  readonly #lastRoles = new Map<string, DaemonEvent['role']>();
  #lastId = 0;

  /** Null: in memory alone. Throws ConfigError when they can't be kept there. */
  constructor(folder: string | null) {
    this.#file = folder === null ? null : path.join(folder, 'events.jsonl');
    if (this.#file === null) return;
    try {
      this.#open(this.#file);
    } catch (error) {
      throw new ConfigError([
        `what happens can't be kept in ${folder}: ${(error as Error).message}; give another \`state-dir\`, or make it writable`,
      ]);
    }
  }

  #open(file: string): void {
    mkdirSync(path.dirname(file), { recursive: true, mode: 0o755 });
    for (const event of [rotated(file), file].flatMap(eventsIn)) this.#keep(event);
    this.#lastId = this.#events.at(-1)?.id ?? 0;
    // Found out now, not by the first event.
    closeSync(openSync(file, 'a', 0o640));
    endLastLine(file);
  }

  /** Throws when it can't be written; it is kept in memory then. */
  add(event: Omit<DaemonEvent, 'id' | 'time'>): void {
    this.#lastId++;
    const kept = { id: this.#lastId, time: new Date().toISOString(), ...event };
    this.#keep(kept);
    if (this.#file === null) return;
    appendFileSync(this.#file, `${JSON.stringify(kept)}\n`, { mode: 0o640 });
    if (statSync(this.#file).size > FILE_BYTES_MAX) renameSync(this.#file, rotated(this.#file));
  }

  #keep(event: DaemonEvent): void {
    const { vm, role, takeOver } = event;
    this.#events.push(event);
    if (this.#events.length > EVENTS_MAX) this.#events.shift();
    if (role !== null) this.#lastRoles.set(vm, role);
    if (takeOver) this.#takeOvers = [...this.#takeOvers, event].slice(-TAKE_OVERS_MAX);
  }

  /** The oldest first, at most `max` of them, which come after the one with that id. */
  after(id: number, vm: string | null, max: number): DaemonEvent[] {
    return this.#events.filter((event) => event.id > id && (vm === null || event.vm === vm)).slice(0, max);
  }

  /** As after(), but the latest ones, when there are more than `max`. */
  latest(id: number, max: number): DaemonEvent[] {
    return this.#events.filter((event) => event.id > id).slice(-max);
  }

  /** The oldest first, as far as they are kept: those that were told after the event with that id. */
  takeOvers(vm: string | null, after = 0): TakeOverRecord[] {
    return this.#takeOvers.flatMap(({ id, takeOver }) =>
      takeOver && id > after && (vm === null || takeOver.vm === vm) ? [takeOver] : [],
    );
  }

  /** What the VM was to this host when something was last told of it; null: nothing is known. */
  lastRole(vm: string): DaemonEvent['role'] {
    return this.#lastRoles.get(vm) ?? null;
  }

  get lastId(): number {
    return this.#lastId;
  }
}

function rotated(file: string): string {
  return `${file}.1`;
}

/** What a crash has cut off must not swallow what is written next. */
function endLastLine(file: string): void {
  const text = readFileSync(file, 'utf8');
  if (text !== '' && !text.endsWith('\n')) appendFileSync(file, '\n');
}

/** A line that a crash has cut off is none. */
function eventsIn(file: string): DaemonEvent[] {
  if (!existsSync(file)) return [];
  return readFileSync(file, 'utf8')
    .split('\n')
    .flatMap((line) => {
      try {
        const event = JSON.parse(line) as DaemonEvent | null;
        return typeof event?.id === 'number' ? [event] : [];
      } catch {
        return [];
      }
    });
}
