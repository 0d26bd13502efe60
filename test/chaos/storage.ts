/** A host's storage: a small tmpfs with its VM's disk and what its agent remembers, which can be filled to the last byte. */
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { run } from '../../src/testbed/child.ts';

const SIZE_MIB = 48;
const FILLER = 'filler';
const CHUNK = Buffer.alloc(4096);

export class Storage {
  readonly folder: string;

  private constructor(folder: string) {
    this.folder = folder;
  }

  static async mount(): Promise<Storage> {
    await removeLeftovers();
    const folder = mkdtempSync(path.join(tmpdir(), `colo-storage-${process.pid}-`));
    await run('mount', '-t', 'tmpfs', '-o', `size=${SIZE_MIB}m`, 'colo-chaos', folder);
    mkdirSync(path.join(folder, 'state'));
    return new Storage(folder);
  }

  get stateFolder(): string {
    return path.join(this.folder, 'state');
  }

  get diskPath(): string {
    return path.join(this.folder, 'd0');
  }

  /** By whole writes until one fails: others take of the room, or leave some, at the same time. */
  fill(): void {
    const filler = openSync(path.join(this.folder, FILLER), 'w');
    try {
      for (;;) writeSync(filler, CHUNK);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
    } finally {
      closeSync(filler);
    }
  }

  empty(): void {
    rmSync(path.join(this.folder, FILLER), { force: true });
  }

  /** The disk and what is known of it; no VM has it open. */
  wipeDisk(): void {
    for (const name of readdirSync(this.folder)) {
      if (name.startsWith('d0')) rmSync(path.join(this.folder, name));
    }
  }

  async destroy(): Promise<void> {
    await unmount(this.folder);
  }
}

async function unmount(folder: string): Promise<void> {
  // Lazily: a process that is just ending may have it open.
  await run('umount', '-l', folder);
  rmSync(folder, { recursive: true });
}

/** Of runs that were killed before they could clean up: the names carry the id of a process that is gone. */
async function removeLeftovers(): Promise<void> {
  for (const [, folder = '', pid] of readFileSync('/proc/self/mounts', 'utf8').matchAll(
    /^colo-chaos (\S+\/colo-storage-(\d+)-\S+) tmpfs/gm,
  )) {
    if (!existsSync(`/proc/${pid}`)) await unmount(folder);
  }
}
