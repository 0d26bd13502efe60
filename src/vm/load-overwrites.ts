/**
 * What loading a device state writes into guest RAM, and must be put back afterwards so that RAM stays the checkpoint's (invariant 2):
 *
 * - Images that QEMU puts into RAM again at every reset: an ELF or multiboot kernel given with -kernel, `-device loader`. `snapshot-load` resets the machine
 *   before it loads (hw/core/loader.c, rom_reset).
 * - The option ROMs' shadow below 1 MiB: with KVM, `kvm-tpr-opt` brings its own ROM's state there up to date whenever it is loaded (hw/i386/vapic.c).
 */
import type { QmpClient } from '../qmp/client.ts';
import { belongsTo, type GuestRange, parseSystemMemory, type RamBlock } from './ram-blocks.ts';

/** A part of a RAM block. */
export interface OverwrittenRange {
  block: string;
  offsetBytes: number;
  sizeBytes: number;
}

/** Where PCs have the option ROMs' shadow, in the RAM that begins at guest address 0 (the flat view of a VM that has not run shows ROM there). */
const OPTION_ROMS = { offsetBytes: 0xc0000, sizeBytes: 0x40000 };

/** Throws when such a range lies where it can't be put back. */
export async function findOverwrittenRanges(
  qmp: QmpClient,
  blocks: readonly RamBlock[],
): Promise<OverwrittenRange[]> {
  const images = parseRamImages(await qmp.execute('human-monitor-command', { 'command-line': 'info roms' }));
  const memory = parseSystemMemory(
    await qmp.execute('human-monitor-command', { 'command-line': 'info mtree -f' }),
  );
  const lowest = locate({ guestAddress: 0n, sizeBytes: 0, name: 'RAM at address 0' }, memory, blocks);
  const inRam = images.map((image) => locate(image, memory, blocks));
  return [{ block: lowest.block, ...OPTION_ROMS }, ...inRam];
}

interface RamImage {
  guestAddress: bigint;
  sizeBytes: number;
  name: string;
}

const RAM_IMAGE = /^addr=([0-9a-f]{16}) size=0x([0-9a-f]+) mem=ram name="(.*)"\r?$/gm;

/** The images in RAM of the table that `info roms` prints (hw/core/loader.c, hmp_info_roms); the others lie in ROM or fw_cfg. */
export function parseRamImages(text: string): RamImage[] {
  return [...text.matchAll(RAM_IMAGE)].map(([, address, size, name = '']) => ({
    guestAddress: BigInt(`0x${address}`),
    sizeBytes: Number.parseInt(size ?? '0', 16),
    name,
  }));
}

function locate(
  { guestAddress, sizeBytes, name }: RamImage,
  memory: readonly GuestRange[],
  blocks: readonly RamBlock[],
): OverwrittenRange {
  const first = rangeAt(memory, guestAddress);
  const block = blocks.find((candidate) => first && belongsTo(first, candidate));
  if (!first || !block) {
    throw new Error(
      `the image ${name} at 0x${guestAddress.toString(16)} does not lie in a RAM block: its VM can't be a standby`,
    );
  }
  return {
    block: block.name,
    offsetBytes: Number(first.offset + guestAddress - first.guestAddress),
    sizeBytes,
  };
}

/** The range that begins last at or before `address`: whether it reaches that far, QEMU has seen to when it placed the image. */
function rangeAt(memory: readonly GuestRange[], address: bigint): GuestRange | undefined {
  return memory.findLast((range) => range.guestAddress <= address);
}
