/** What Linux tells about the QEMU process (proc(5)). Needs the same user as QEMU, or root. */
import { readdir, readFile, readlink } from 'node:fs/promises';
import path from 'node:path';

/** A line of /proc/PID/maps. */
export interface Mapping {
  start: bigint;
  end: bigint;
  /** `rw-p` and the like. */
  permissions: string;
  /** Empty for anonymous memory. */
  file: string;
}

const MAPS_LINE = /^([0-9a-f]+)-([0-9a-f]+) (\S{4}) [0-9a-f]+ \S+ \d+ *(.*)$/;

export function parseMappings(text: string): Mapping[] {
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => {
      const [, start, end, permissions, file] = MAPS_LINE.exec(line) ?? [];
      if (start === undefined || end === undefined || permissions === undefined || file === undefined) {
        throw new Error(`cannot understand this line of /proc/PID/maps: ${line}`);
      }
      return { start: BigInt(`0x${start}`), end: BigInt(`0x${end}`), permissions, file };
    });
}

export class HostProcess {
  readonly pid: number;
  readonly #folder: string;

  /** `procFolder` is for tests. */
  constructor(pid: number, procFolder = '/proc') {
    this.pid = pid;
    this.#folder = path.join(procFolder, String(pid));
  }

  async commandLine(): Promise<string[]> {
    const text = await readFile(path.join(this.#folder, 'cmdline'), 'utf8');
    return text.split('\0').slice(0, -1);
  }

  async mappings(): Promise<Mapping[]> {
    return parseMappings(await readFile(path.join(this.#folder, 'maps'), 'utf8'));
  }

  /** What the process's descriptors point to: `/dev/vhost-net`, `socket:[123]`, `anon_inode:[eventfd]`, ... */
  async openFiles(): Promise<string[]> {
    const folder = path.join(this.#folder, 'fd');
    const targets = await Promise.all(
      (await readdir(folder)).map((name) => targetOf(path.join(folder, name))),
    );
    return targets.filter((target) => target !== null);
  }
}

async function targetOf(link: string): Promise<string | null> {
  try {
    return await readlink(link);
  } catch (error) {
    // QEMU closed the descriptor since the folder was read.
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
}
