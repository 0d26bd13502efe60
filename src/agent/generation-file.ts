/**
 * The newest generation of one VM that this host has acted on or answered to, in a file that outlives agents and reboots: a host that comes back never takes
 * an older one for the newest.
 */
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { replaceFile } from '../vm/durable-file.ts';

export class GenerationFileError extends Error {
  override readonly name = 'GenerationFileError';
}

export class GenerationFile {
  readonly #file: string;
  readonly #vm: string;
  #highest: number;
  #writing: Promise<void> = Promise.resolve();

  /** Throws GenerationFileError for a file that isn't one of ours; one that isn't there yet is made by the first record(). */
  constructor(folder: string, vm: string) {
    this.#file = path.join(folder, `${vm}.generation`);
    this.#vm = vm;
    this.#highest = existsSync(this.#file) ? this.#read() : 0;
  }

  /** 0: none yet. */
  get highest(): number {
    return this.#highest;
  }

  /** Resolves when `generation`, or a newer one, is durable. Rejects with GenerationFileError. */
  record(generation: number): Promise<void> {
    const writing = this.#writing.then(() => this.#write(generation));
    this.#writing = writing.catch(() => {}); // its own caller is told
    return writing;
  }

  /** Resolves when the file has been written once more as it is: whatever is recorded next can be. Rejects with GenerationFileError. */
  rewrite(): Promise<void> {
    const writing = this.#writing.then(() => this.#replace(this.#highest));
    this.#writing = writing.catch(() => {});
    return writing;
  }

  async #write(generation: number): Promise<void> {
    if (generation > this.#highest) await this.#replace(generation);
  }

  async #replace(generation: number): Promise<void> {
    try {
      await replaceFile(this.#file, `${JSON.stringify({ format: 1, vm: this.#vm, generation })}\n`);
    } catch (error) {
      throw new GenerationFileError(
        `can't record generation ${generation} in ${this.#file}: ${(error as Error).message}; give --state-dir a folder that can be written`,
      );
    }
    this.#highest = generation;
  }

  #read(): number {
    try {
      const { format, vm, generation } = JSON.parse(readFileSync(this.#file, 'utf8')) as Record<
        string,
        unknown
      >;
      const valid = format === 1 && vm === this.#vm && Number.isSafeInteger(generation);
      if (valid && (generation as number) >= 0) return generation as number;
      throw new Error('it lacks a member, or has one of another kind');
    } catch (error) {
      throw new GenerationFileError(
        `${this.#file} doesn't hold a generation: ${(error as Error).message}. Remove it if VM ${this.#vm} runs nowhere else`,
      );
    }
  }
}
