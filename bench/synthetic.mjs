/** native/bench/synthetic_guest.cc as an object: a process with RAM that it writes to when it is told. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { Child } from '../dist/testbed/child.js';
import { nativeProgram } from './build.mjs';

export class SyntheticGuest {
  #child;
  #folder;
  #lines;

  /** Resolves when all of its RAM is populated. `program`: where synthetic_guest is, when it must not be built again. */
  static async start(cleanup, memoryMiB, program = nativeProgram('synthetic_guest')) {
    const guest = new SyntheticGuest();
    guest.#folder = mkdtempSync(path.join(tmpdir(), 'colo-bench-'));
    guest.#child = await Child.start([program, String(memoryMiB), 'shared'], {
      stderrPath: path.join(guest.#folder, 'stderr'),
      pipes: true,
    });
    cleanup.own(guest);
    guest.pid = guest.#child.pid;
    guest.#lines = createInterface({ input: guest.#child.stdout })[Symbol.asyncIterator]();
    const hostAddress = BigInt(await guest.#nextLine());
    guest.block = { name: 'synthetic.ram', hostAddress, sizeBytes: memoryMiB * 1024 * 1024 };
    return guest;
  }

  /** Writes 8 bytes into each of `pages` random pages. */
  async write(pages) {
    await this.#ask(`write ${pages}`);
  }

  /** The median of `times` plain copies of `pages` random pages, each time freshly written. */
  async copyUs(pages, times) {
    return Number(await this.#ask(`copy ${pages} ${times}`)) / 1000;
  }

  /** Idempotent: whoever needs its memory back doesn't wait for the end of the section. */
  async destroy() {
    await this.#child.stop();
    rmSync(this.#folder, { recursive: true, force: true });
  }

  async #ask(line) {
    this.#child.stdin.write(`${line}\n`);
    return this.#nextLine();
  }

  async #nextLine() {
    const { value, done } = await this.#lines.next();
    if (done) {
      await this.#child.exited;
      this.#child.assertRunning(); // throws, with what it wrote to standard error
    }
    return value;
  }
}
