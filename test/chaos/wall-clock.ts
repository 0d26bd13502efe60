/**
 * The wall clock of one of the hosts, as its agents and QEMUs see it. A kernel has one for all (namespaces of time have only the clocks that count on), and this
 * machine's isn't ours to set; so those programs are started with clock.c between them and the kernel. etcd isn't: Go asks the kernel itself.
 */
import { chmodSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { compile } from './compile.ts';

export class WallClock {
  readonly #file: string;
  readonly #library: string;
  #offsetS = 0;

  private constructor(file: string, library: string) {
    this.#file = file;
    this.#library = library;
  }

  /** `name`: the host's. What it needs lies in `folder`. */
  static async create(folder: string, name: string): Promise<WallClock> {
    const clock = new WallClock(path.join(folder, `${name}.clock`), path.join(folder, 'clock.so'));
    writeFileSync(clock.#file, Buffer.alloc(8));
    await compile('clock.c', clock.#library, '-shared', '-fPIC');
    return clock;
  }

  /** For a program that is to see it. */
  get environment(): Record<string, string> {
    return { LD_PRELOAD: this.#library, COLO_CLOCK: this.#file };
  }

  /** Somebody sets it, by so many seconds. */
  step(seconds: number): void {
    this.#offsetS += seconds;
    this.#write();
  }

  /** A script that becomes `program`, which sees this clock. */
  wrap(program: string, file: string): string {
    const words = Object.entries(this.environment).map(([name, value]) => `${name}=${value}`);
    writeFileSync(file, `#!/bin/sh\nexec env ${words.join(' ')} ${program} "$@"\n`);
    chmodSync(file, 0o755);
    return file;
  }

  /** In place: the file is mapped by who sees it. */
  #write(): void {
    const bytes = Buffer.alloc(8);
    bytes.writeBigInt64LE(BigInt(this.#offsetS) * 1_000_000_000n);
    writeFileSync(this.#file, bytes, { flag: 'r+' });
  }
}
