/**
 * The newest generation of one VM that this host has acted on or answered to, and the newest that it has won itself, in a file that outlives agents and reboots: a host
 * that comes back never takes an older one for the newest. With the name that the host has by the witness: under another it would take its own record for a stranger's.
 */
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { isNodeName } from '../protocol/arbiter.ts';
import { replaceFile } from '../vm/durable-file.ts';

export class GenerationFileError extends Error {
  override readonly name = 'GenerationFileError';
}

interface Content {
  generation: number;
  won: number;
  /** Null: written by a version that didn't keep it. */
  node: string | null;
}

export class GenerationFile {
  readonly #file: string;
  readonly #vm: string;
  readonly #node: string;
  #content: Content;
  #writing: Promise<void> = Promise.resolve();

  /**
   * `node`: what this host calls itself. Throws GenerationFileError for a file that isn't one of ours, or of this VM's under another name; one that isn't there yet is
   * made by the first record() or win().
   */
  constructor(folder: string, vm: string, node: string) {
    this.#file = path.join(folder, `${vm}.generation`);
    this.#vm = vm;
    this.#node = node;
    this.#content = existsSync(this.#file) ? this.#read() : { generation: 0, won: 0, node };
    const { node: kept } = this.#content;
    if (kept !== null && kept !== node) {
      throw new GenerationFileError(
        `this host takes part in ${vm} as ${kept} (${this.#file}), and is called ${node} now: the witness would take it for another. Give --node ${kept}; or, if the VM runs ` +
          'nowhere, remove that file here and the record at the witness, if there is one',
      );
    }
  }

  /** 0: none yet. */
  get highest(): number {
    return this.#content.generation;
  }

  /** The newest that this host has won itself; 0: none. */
  get won(): number {
    return this.#content.won;
  }

  /** Resolves when `generation`, or a newer one, is durable. Rejects with GenerationFileError. */
  record(generation: number): Promise<void> {
    return this.#update(generation, 0);
  }

  /** The same for one that this host has won. */
  win(generation: number): Promise<void> {
    return this.#update(generation, generation);
  }

  /** Resolves when the file has been written once more as it is: whatever is recorded next can be. Rejects with GenerationFileError. */
  rewrite(): Promise<void> {
    return this.#queue(() => this.#write(this.#content));
  }

  #update(seen: number, won: number): Promise<void> {
    return this.#queue(async () => {
      const before = this.#content;
      const generation = Math.max(before.generation, seen);
      const content = { generation, won: Math.max(before.won, won), node: this.#node };
      if (generation > before.generation || content.won > before.won) await this.#write(content);
    });
  }

  #queue(write: () => Promise<void>): Promise<void> {
    const writing = this.#writing.then(write);
    this.#writing = writing.catch(() => {}); // its own caller is told
    return writing;
  }

  async #write(content: Content): Promise<void> {
    try {
      const text = JSON.stringify({ format: 1, vm: this.#vm, ...content, node: this.#node });
      await replaceFile(this.#file, `${text}\n`);
    } catch (error) {
      throw new GenerationFileError(
        `can't record generation ${content.generation} in ${this.#file}: ${(error as Error).message}; give --state-dir a folder that can be written`,
      );
    }
    this.#content = content;
  }

  #read(): Content {
    try {
      const {
        format,
        vm,
        generation,
        won = 0,
        node = null,
      } = JSON.parse(readFileSync(this.#file, 'utf8')) as Record<string, unknown>;
      const named = node === null || isNodeName(node);
      if (format === 1 && vm === this.#vm && isCount(generation) && isCount(won) && named)
        return { generation, won, node: node as string | null };
      throw new Error('it lacks a member, or has one of another kind');
    } catch (error) {
      throw new GenerationFileError(
        `${this.#file} doesn't hold a generation: ${(error as Error).message}. Remove it if VM ${this.#vm} runs nowhere else`,
      );
    }
  }
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}
