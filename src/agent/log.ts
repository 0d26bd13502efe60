/** Structured logs: one JSON object a line on stderr, with the VM, the role and the epoch; for the journal after `<N>`, its priority. */
import { goesToJournal } from './journal.ts';

const LEVELS = { error: 0, warn: 1, info: 2, debug: 3 } as const;

export type LogLevel = keyof typeof LEVELS;
export const LOG_LEVELS = Object.keys(LEVELS) as LogLevel[];

/** syslog(3)'s numbers, by which `journalctl -p` selects. */
const PRIORITIES: Record<LogLevel, number> = { error: 3, warn: 4, info: 6, debug: 7 };

export type LogFields = Record<string, string | number | boolean | null | undefined>;

export class Log {
  readonly #levelMax: number;
  readonly #fields: () => LogFields;
  readonly #write: (line: string, level: LogLevel) => void;

  /** `fields` is asked at every line: what stands in each of them (vm, role, epoch). */
  constructor(
    level: LogLevel,
    fields: () => LogFields,
    write: (line: string, level: LogLevel) => void = writeToStderr,
  ) {
    this.#levelMax = LEVELS[level];
    this.#fields = fields;
    this.#write = write;
  }

  error(message: string, fields: LogFields = {}): void {
    this.#log('error', message, fields);
  }

  warn(message: string, fields: LogFields = {}): void {
    this.#log('warn', message, fields);
  }

  info(message: string, fields: LogFields = {}): void {
    this.#log('info', message, fields);
  }

  debug(message: string, fields: LogFields = {}): void {
    this.#log('debug', message, fields);
  }

  #log(level: LogLevel, message: string, fields: LogFields): void {
    if (LEVELS[level] > this.#levelMax) return;
    const time = new Date().toISOString();
    this.#write(`${JSON.stringify({ time, level, ...this.#fields(), message, ...fields })}\n`, level);
  }
}

/** Looked at once: a process keeps its standard error. */
let journal: boolean | undefined;

function writeToStderr(line: string, level: LogLevel): void {
  journal ??= goesToJournal(2, process.env);
  process.stderr.write(journal ? `<${PRIORITIES[level]}>${line}` : line);
}
