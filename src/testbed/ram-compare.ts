/** Compares the guest RAM of two stopped QEMUs on one machine, byte for byte, through /proc/PID/mem. For tests: it needs root and both processes here. */
import { closeSync, openSync, readSync } from 'node:fs';

export const PAGE_BYTES = 4096;
const CHUNK_BYTES = 1 << 20;

/** A RAM block of each of the two; sizes are equal. */
export interface BlockPair {
  name: string;
  sizeBytes: number;
  hostAddresses: [bigint, bigint];
}

export interface DifferentPage {
  block: string;
  /** Number of the page in its block. */
  page: number;
}

/** Every page that differs. Throws when memory can't be read: an address that isn't mapped is no difference but a mistake. */
export function compareRam(pids: [number, number], blocks: BlockPair[]): DifferentPage[] {
  const files = pids.map((pid) => openSync(`/proc/${pid}/mem`, 'r')) as [number, number];
  try {
    return blocks.flatMap((block) => compareBlock(files, block));
  } finally {
    for (const file of files) closeSync(file);
  }
}

function compareBlock(files: [number, number], block: BlockPair): DifferentPage[] {
  const chunks = [Buffer.alloc(CHUNK_BYTES), Buffer.alloc(CHUNK_BYTES)] as const;
  const different: DifferentPage[] = [];
  for (let at = 0; at < block.sizeBytes; at += CHUNK_BYTES) {
    const bytes = Math.min(CHUNK_BYTES, block.sizeBytes - at);
    for (const side of [0, 1] as const) {
      readExactly(files[side], chunks[side].subarray(0, bytes), block.hostAddresses[side] + BigInt(at));
    }
    if (chunks[0].equals(chunks[1])) continue;
    for (let from = 0; from < bytes; from += PAGE_BYTES) {
      if (chunks[0].compare(chunks[1], from, from + PAGE_BYTES, from, from + PAGE_BYTES) === 0) continue;
      different.push({ block: block.name, page: (at + from) / PAGE_BYTES });
    }
  }
  return different;
}

function readExactly(file: number, target: Buffer, address: bigint): void {
  for (let done = 0; done < target.length; ) {
    const read = readSync(file, target, done, target.length - done, address + BigInt(done));
    if (read === 0) throw new Error(`no memory at 0x${(address + BigInt(done)).toString(16)}`);
    done += read;
  }
}
