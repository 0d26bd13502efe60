import { describe, expect, it } from 'vitest';
import { parseMappings } from '../../src/vm/host-process.ts';
import { findRamBlocks, parseRamBlocks, parseSystemMemory } from '../../src/vm/ram-blocks.ts';
import { FakeQmp, fakeProcess } from './vm-fakes.ts';

// Recorded from QEMU 7.2.22: q35 with -vga std under -S.
const RAMBLOCK_72 = `              Block Name    PSize              Offset               Used              Total\r
                  pc.ram    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000\r
                            4 KiB  0x0000000000000000 0x0000000001000000 0x0000000001000000\r
   0000:00:01.0/vga.vram    4 KiB  0x0000000010080000 0x0000000001000000 0x0000000001000000\r
    /rom@etc/acpi/tables    4 KiB  0x0000000011100000 0x0000000000020000 0x0000000000200000\r
                 pc.bios    4 KiB  0x0000000010000000 0x0000000000040000 0x0000000000040000\r
0000:00:02.0/virtio-net-pci.rom    4 KiB  0x00000000110c0000 0x0000000000040000 0x0000000000040000\r
`;
const MTREE_72 = `FlatView #0\r
 AS "cpu-smm-0", root: memory\r
 Root memory region: memory\r
  0000000000000000-000000000fffffff (prio 0, ram): elsewhere\r
\r
FlatView #2\r
 AS "memory", root: system\r
 AS "cpu-memory-0", root: system\r
 Root memory region: system\r
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM\r
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem\r
  00000000000c0000-00000000000dffff (prio 0, rom): pc.ram @00000000000c0000 KVM\r
  0000000000100000-000000000fffffff (prio 0, ram): pc.ram @0000000000100000\r
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios\r
\r
`;
const HVA_72 = 'Host virtual address for 0x0 (pc.ram) is 0x7f6a77e00000\r\n';
// Recorded from QEMU 11.1.3, shortened.
const RAMBLOCK_111 = `              Block Name    PSize              Offset               Used              Total                HVA  RO
                  pc.ram    2 MiB  0x0000000000000000 0x0000000010000000 0x0000000010000000 0x00007f6a77e00000  rw
   0000:00:01.0/vga.vram    4 KiB  0x0000000010080000 0x0000000001000000 0x0000000001000000 0x00007f6a8da00000  rw
    /rom@etc/acpi/tables    4 KiB  0x0000000011100000 0x0000000000020000 0x0000000000200000 0x00007f742b800000  ro
`;

const RAM =
  '7f6a77e00000-7f6a87e00000 rw-p 00000000 00:00 0 \n7f6a87e00000-7f6a87e01000 ---p 00000000 00:00 0 \n';
const GUARDED = (start: string, end: string, behind: string) =>
  `${start}-${end} rw-p 00000000 00:00 0 \n${end}-${behind} ---p 00000000 00:00 0 \n`;
const VRAM = GUARDED('7f6a8da00000', '7f6a8ea00000', '7f6a8ea01000');
const THREAD_STACK = '7f6aa0000000-7f6aa1000000 rw-p 00000000 00:00 0 \n';

const qemu72 = { 'info ramblock': RAMBLOCK_72, 'info mtree -f': MTREE_72, 'gpa2hva 0x0': HVA_72 };
const find = (answers: Record<string, unknown>, maps: string) =>
  findRamBlocks(new FakeQmp(answers).client, 1, fakeProcess({ maps }));

const EXPECTED = [
  { name: 'pc.ram', hostAddress: 0x7f6a77e00000n, sizeBytes: 256 << 20 },
  { name: '0000:00:01.0/vga.vram', hostAddress: 0x7f6a8da00000n, sizeBytes: 16 << 20 },
];

describe('findRamBlocks', () => {
  it('believes the addresses that a newer QEMU prints', async () => {
    expect(await find({ 'info ramblock': RAMBLOCK_111 }, RAM + VRAM)).toEqual(EXPECTED);
  });

  it('finds mapped blocks by their guest address and others by their size', async () => {
    expect(await find(qemu72, RAM + VRAM + THREAD_STACK)).toEqual(EXPECTED);
  });

  it('takes the offset of the range into account', async () => {
    const mtree = MTREE_72.replace(/.*-000000000009ffff.*\r\n/, '');
    const hva = 'Host virtual address for 0x100000 (pc.ram) is 0x7f6a77f00000\r\n';
    const answers = { ...qemu72, 'info mtree -f': mtree, 'gpa2hva 0x100000': hva };
    expect(await find(answers, RAM + VRAM)).toEqual(EXPECTED);
  });

  it('looks for the size when the guest moved the block in the meantime', async () => {
    const moved = {
      ...qemu72,
      'gpa2hva 0x0': 'Host virtual address for 0x0 (vga.vram) is 0x7f6a8da00000\r\n',
    };
    expect(await find(moved, RAM + VRAM)).toEqual(EXPECTED);
  });

  it('refuses to guess between two mappings', async () => {
    const twin = GUARDED('7f6b8da00000', '7f6b8ea00000', '7f6b8ea01000');
    await expect(find(qemu72, RAM + VRAM + twin)).rejects.toThrow(
      /vga\.vram \(16777216 bytes\): the mappings at 0x7f6a8da00000, 0x7f6b8da00000 all fit/,
    );
  });

  it.each([
    ['no mapping of that size', RAM],
    ['only one without a guard page', RAM + THREAD_STACK],
    ['only a read-only one', RAM + VRAM.replace('rw-p', 'r--p')],
  ])('says so with %s', async (_, maps) => {
    await expect(find(qemu72, maps)).rejects.toThrow(/no mapping fits/);
  });

  it.each([
    ['isn’t mapped at all', VRAM],
    ['is mapped in part', RAM.replace('7f6a87e00000 rw-p', '7f6a87d00000 rw-p') + VRAM],
    ['is read-only', RAM.replace('rw-p', 'r--p') + VRAM],
  ])('refuses a block that %s in the process', async (_, maps) => {
    await expect(find(qemu72, maps)).rejects.toThrow(/pc\.ram: nothing is mapped read-write at 0x/);
  });

  it('accepts a block that is mapped in adjacent pieces', async () => {
    const pieces =
      '7f6a77e00000-7f6a7fe00000 rw-s 00000000 00:01 7 /memfd:ram (deleted)\n7f6a7fe00000-7f6a87e00000 rw-s 08000000 00:01 7 /memfd:ram (deleted)\n';
    expect(await find(qemu72, pieces + VRAM)).toEqual(EXPECTED);
  });

  it('refuses sizes and addresses that are not whole pages', async () => {
    const odd = RAMBLOCK_111.replace('0x00007f6a77e00000', '0x00007f6a77e00010');
    await expect(find({ 'info ramblock': odd }, RAM + VRAM)).rejects.toThrow(/not whole pages/);
  });
});

describe('what QEMU prints', () => {
  it.each(['', 'nonsense', 'unknown command: ramblock\r\n'])('is refused as a list of blocks: %j', (text) => {
    expect(() => parseRamBlocks(text)).toThrow(/cannot understand/);
  });

  it('is refused line by line', () => {
    expect(() => parseRamBlocks(`${RAMBLOCK_72}  pc.ram  four pages  0x0 0x0\r\n`)).toThrow(
      /this line .*four pages/,
    );
  });

  it('is refused without the machine’s own memory', () => {
    expect(() => parseSystemMemory(MTREE_72.replace('"memory"', '"other"'))).toThrow(
      /cannot find the machine's memory/,
    );
  });

  it('gives sizes and kinds', () => {
    expect(parseRamBlocks(RAMBLOCK_111).map(({ readOnly }) => readOnly)).toEqual([false, false, true]);
    expect(parseRamBlocks(RAMBLOCK_72)[3]).toMatchObject({
      name: '/rom@etc/acpi/tables',
      sizeBytes: 0x20000,
    });
    expect(parseSystemMemory(MTREE_72).map(({ kind, region }) => `${kind} ${region}`)).toEqual([
      'ram pc.ram',
      'rom pc.ram',
      'ram pc.ram',
      'rom pc.bios',
    ]);
  });
});

describe('/proc/PID/maps', () => {
  it('is read with and without file names', () => {
    const text =
      '7f00-7f10 rw-s 00000000 00:01 1038 /memfd:a b (deleted)\nffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]\n';
    expect(parseMappings(text)).toEqual([
      { start: 0x7f00n, end: 0x7f10n, permissions: 'rw-s', file: '/memfd:a b (deleted)' },
      { start: 0xffffffffff600000n, end: 0xffffffffff601000n, permissions: '--xp', file: '[vsyscall]' },
    ]);
  });

  it('is refused when it is something else', () => {
    expect(() => parseMappings('hello\n')).toThrow(/cannot understand/);
  });
});
