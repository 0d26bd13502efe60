import { describe, expect, test } from 'vitest';
import type { QmpClient } from '../../src/qmp/client.ts';
import { findOverwrittenRanges } from '../../src/vm/load-overwrites.ts';

const MTREE = `FlatView #2
 AS "memory", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram
  00000000000c0000-00000000000fffff (prio 1, rom): pc.ram @00000000000c0000
  0000000000100000-000000000fffffff (prio 0, ram): pc.ram @0000000000100000
  0000000100000000-000000017fffffff (prio 0, ram): pc.ram @0000000080000000
  0000000200000000-000000020fffffff (prio 0, ram): other
`;

const OPTION_ROMS = { block: 'pc.ram', offsetBytes: 0xc0000, sizeBytes: 0x40000 };
const BLOCKS = [{ name: 'pc.ram', hostAddress: 0n, sizeBytes: 1 << 30 }];

function qemu(roms: string): QmpClient {
  const answers: Record<string, string> = { 'info roms': roms, 'info mtree -f': MTREE };
  return {
    execute: async (_name: string, args: { 'command-line': string }) => answers[args['command-line']],
  } as unknown as QmpClient;
}

describe('findOverwrittenRanges', () => {
  test('only what lies in RAM, by block and offset', async () => {
    const roms = [
      'fw=genroms/kvmvapic.bin size=0x002400 name="kvmvapic.bin"',
      'addr=0000000000100000 size=0x0003e8 mem=ram name="a.elf ELF program header segment 0"',
      'addr=0000000100001000 size=0x002000 mem=ram name="blob \\"x\\""',
      'addr=00000000fffc0000 size=0x040000 mem=rom name="bios-256k.bin"',
      '/rom@etc/acpi/tables size=0x200000 name="etc/acpi/tables"',
    ].join('\r\n');
    expect(await findOverwrittenRanges(qemu(roms), BLOCKS)).toEqual([
      OPTION_ROMS,
      { block: 'pc.ram', offsetBytes: 0x100000, sizeBytes: 0x3e8 },
      { block: 'pc.ram', offsetBytes: 0x80001000, sizeBytes: 0x2000 },
    ]);
  });

  test('an image outside the RAM blocks is refused', async () => {
    const roms = 'addr=0000000200000000 size=0x0003e8 mem=ram name="a.elf"';
    await expect(findOverwrittenRanges(qemu(roms), BLOCKS)).rejects.toThrow(/a\.elf/);
  });

  test('no image in RAM: the option ROMs alone', async () => {
    expect(await findOverwrittenRanges(qemu('fw=x size=0x1 name="x"\r\n'), BLOCKS)).toEqual([OPTION_ROMS]);
  });
});
