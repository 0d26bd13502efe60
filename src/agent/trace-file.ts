/**
 * The file behind `--trace`: the JSON array format of Chrome's trace events, which Perfetto reads too ("Trace Event Format", "JSON Array Format").
 * The closing bracket is optional there, and separators stand before each event, so a file is good up to whatever was written last, however the
 * agent ended.
 */
import { type FileHandle, open } from 'node:fs/promises';
import type { Log } from './log.ts';

export const TRACE_BYTES_MAX = 256 * 1024 * 1024;

const FOOTER = '\n]\n';

/** Whatever befalls the file is logged once and ends the trace, never the agent. */
export class TraceFile {
  readonly path: string;
  readonly #file: FileHandle;
  readonly #log: Log;
  readonly #bytesMax: number;
  #writtenBytes = 0;
  #writing: Promise<void> = Promise.resolve();
  #busy = false;
  #failed = false;
  #closing: Promise<void> | null = null;

  /** Makes the file, or empties it. Rejects when that is not possible. */
  static async open(path: string, log: Log, bytesMax = TRACE_BYTES_MAX): Promise<TraceFile> {
    return new TraceFile(path, await open(path, 'w'), log, bytesMax);
  }

  private constructor(path: string, file: FileHandle, log: Log, bytesMax: number) {
    this.path = path;
    this.#file = file;
    this.#log = log;
    this.#bytesMax = bytesMax;
  }

  /** Nothing more will be written, for whatever reason. */
  get ended(): boolean {
    return this.#closing !== null;
  }

  /** A write is in progress, perhaps for long (a disk that hangs): append() may not be called. */
  get busy(): boolean {
    return this.#busy;
  }

  /** Resolves when the write in progress has come to its end. */
  written(): Promise<void> {
    return this.#writing;
  }

  /** Writes whole events, each a JSON object, in the background. */
  append(events: readonly string[]): void {
    if (this.#busy) throw new Error('a write to the trace is in progress');
    if (this.ended || events.length === 0) return;
    const begin = this.#writtenBytes === 0 ? '[\n' : ',\n';
    const bytes = Buffer.from(begin + events.join(',\n'));
    if (this.#writtenBytes + bytes.length + FOOTER.length > this.#bytesMax) {
      this.#log.warn('the trace has reached its limit and ends here', {
        file: this.path,
        bytes: this.#bytesMax,
      });
      void this.close();
      return;
    }
    this.#busy = true;
    this.#writing = this.#write(bytes);
  }

  /** Completes the file. Waits for the write in progress. */
  close(): Promise<void> {
    this.#closing ??= this.#complete();
    return this.#closing;
  }

  async #write(bytes: Buffer): Promise<void> {
    try {
      await this.#file.appendFile(bytes);
      this.#writtenBytes += bytes.length;
    } catch (error) {
      this.#fail(error as Error);
      // Half an event would be in the way of all those before it.
      await this.#file.truncate(this.#writtenBytes).catch(() => {});
      void this.close();
    } finally {
      this.#busy = false;
    }
  }

  async #complete(): Promise<void> {
    await this.#writing;
    try {
      if (!this.#failed) await this.#file.appendFile(this.#writtenBytes === 0 ? `[${FOOTER}` : FOOTER);
    } catch (error) {
      this.#fail(error as Error);
    }
    await this.#file.close().catch((error: Error) => this.#fail(error));
  }

  #fail(error: Error): void {
    if (this.#failed) return;
    this.#failed = true;
    this.#log.warn('the trace ends here: it could not be written', {
      file: this.path,
      error: error.message,
    });
  }
}
