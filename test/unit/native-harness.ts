/** A process with some memory that native tests may track, copy and overwrite, and its bytes read the slow way. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import type { NativeRamBlock } from '../../src/native/binding.ts';

const BLOCK_BYTES = 256 * 1024;
const PAGE_BYTES = 4096;
const FILL = 0xc0;
const FILL_SEEN_BYTES = 64;

/** Its memory begins with the given mark and a fill, until the first "write": some bytes in every page, other ones each time
 * and in each process. */
const GUEST_PROGRAM = `
  const memory = new Uint8Array(${BLOCK_BYTES + 2 * PAGE_BYTES}).fill(${FILL});
  memory.set(Buffer.from(process.argv[1], 'hex'));
  let round = 0;
  process.stdin.on('data', () => {
    round += 1;
    for (let at = ${PAGE_BYTES}; at < memory.length; at += 512) memory[at + round] = round * 7 + at / 512 + process.pid;
    process.stdout.write('.');
  });
  process.stdout.write('.');
`;

/** A child process to attach to as if it were a QEMU with one RAM block. */
export class FakeGuest {
  readonly #child: ChildProcess;
  readonly #memory: number;
  readonly block: NativeRamBlock;

  private constructor(child: ChildProcess, memory: number, hostAddress: bigint) {
    this.#child = child;
    this.#memory = memory;
    this.block = { name: 'fake.ram', hostAddress, sizeBytes: BLOCK_BYTES };
  }

  static async start(): Promise<FakeGuest> {
    const mark = Buffer.from(`colo-agent test ${process.pid} ${Math.random()}`);
    const child = spawn(process.execPath, ['-e', GUEST_PROGRAM, mark.toString('hex')], {
      stdio: ['pipe', 'pipe', 'inherit'],
      // A sanitizer preloaded for the addon would fill the guest with mappings of terabytes.
      env: { ...process.env, LD_PRELOAD: '' },
    });
    await once(child.stdout, 'data');
    const memory = fs.openSync(`/proc/${child.pid}/mem`, 'r');
    const address = findMark(child.pid as number, memory, mark);
    const page = BigInt(PAGE_BYTES);
    return new FakeGuest(child, memory, (address / page + 1n) * page);
  }

  get pid(): number {
    return this.#child.pid as number;
  }

  /** Resolves once every page has been written to. */
  async write(): Promise<void> {
    const written = once(this.#child.stdout as NodeJS.ReadableStream, 'data');
    this.#child.stdin?.write('w');
    await written;
  }

  read(): Buffer {
    return readAt(this.#memory, this.block.hostAddress, this.block.sizeBytes);
  }

  async kill(): Promise<void> {
    fs.closeSync(this.#memory);
    const gone = once(this.#child, 'exit');
    this.#child.kill('SIGKILL');
    await gone;
  }
}

/** Where `mark` and the fill behind it lie: that tells the array from other copies of the mark. */
function findMark(pid: number, memory: number, mark: Buffer): bigint {
  const needle = Buffer.concat([mark, Buffer.alloc(FILL_SEEN_BYTES, FILL)]);
  for (const line of fs.readFileSync(`/proc/${pid}/maps`, 'utf8').split('\n')) {
    const found = /^([0-9a-f]+)-([0-9a-f]+) rw-p \S+ 00:00 0\s*(\[heap\])?$/.exec(line);
    if (!found) continue;
    const start = BigInt(`0x${found[1]}`);
    const at = readAt(memory, start, Number(BigInt(`0x${found[2]}`) - start)).indexOf(needle);
    if (at >= 0) return start + BigInt(at);
  }
  throw new Error("the fake guest's memory was not found");
}

function readAt(memory: number, address: bigint, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  let done = 0;
  while (done < length) {
    const step = fs.readSync(memory, bytes, done, length - done, address + BigInt(done));
    if (step === 0) throw new Error('the fake guest is gone');
    done += step;
  }
  return bytes;
}

export function nothing(): void {}

/** One frame as QEMU's filter-redirector writes it. */
export function frame(payload: string): Buffer {
  const header = Buffer.alloc(8);
  header.writeUInt32BE(Buffer.byteLength(payload), 0);
  return Buffer.concat([header, Buffer.from(payload)]);
}

/** Resolves once `condition` holds. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 2));
}
