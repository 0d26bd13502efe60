/** What happened to the VMs of this host, as far back as it is kept: in memory, and in a file that outlives the daemon. */
import { appendFileSync, existsSync, mkdirSync, readFileSync, renameSync, statSync } from 'node:fs';
import path from 'node:path';
import type { TakeOverRecord } from '../agent/take-over-record.ts';

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
const FILE_BYTES_MAX = 4 << 20;

export class EventStore {
  readonly #file: string | null;
  #events: DaemonEvent[] = [];
  #lastId = 0;

  /** Null: in memory alone. Throws when the folder can't be made or the file not be read. */
  constructor(folder: string | null) {
    this.#file = folder === null ? null : path.join(folder, 'events.jsonl');
    if (this.#file === null) return;
    mkdirSync(path.dirname(this.#file), { recursive: true, mode: 0o755 });
    this.#events = [rotated(this.#file), this.#file].flatMap(eventsIn).slice(-EVENTS_MAX);
    this.#lastId = this.#events.at(-1)?.id ?? 0;
    if (existsSync(this.#file)) endLastLine(this.#file);
  }

  /** Throws when it can't be written; it is kept in memory then. */
  add(event: Omit<DaemonEvent, 'id' | 'time'>): void {
    this.#lastId++;
    const kept = { id: this.#lastId, time: new Date().toISOString(), ...event };
    this.#events.push(kept);
    if (this.#events.length > EVENTS_MAX) this.#events.shift();
    if (this.#file === null) return;
    appendFileSync(this.#file, `${JSON.stringify(kept)}\n`, { mode: 0o640 });
    if (statSync(this.#file).size > FILE_BYTES_MAX) renameSync(this.#file, rotated(this.#file));
  }

  /** The oldest first, at most `max` of them, which come after the one with that id. */
  after(id: number, vm: string | null, max: number): DaemonEvent[] {
    return this.#events.filter((event) => event.id > id && (vm === null || event.vm === vm)).slice(0, max);
  }

  /** As after(), but the latest ones, when there are more than `max`. */
  latest(id: number, max: number): DaemonEvent[] {
    return this.#events.filter((event) => event.id > id).slice(-max);
  }

  /** The oldest first, as far as they are kept: the last `max` of those that the event with that id did not have. */
  takeOvers(vm: string | null, max: number, after = 0): TakeOverRecord[] {
    return this.#events
      .flatMap(({ id, takeOver }) =>
        takeOver && id > after && (vm === null || takeOver.vm === vm) ? [takeOver] : [],
      )
      .slice(-max);
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
        return [JSON.parse(line) as DaemonEvent];
      } catch {
        return [];
      }
    });
}
