/** What QEMU and the kernel print, to be changed in every way; recorded from QEMU 7.2.22 and 11.1.3, shortened. */
import type { VmDescription } from '../../src/vm/description.ts';

export const RAM_BLOCKS = [
  `              Block Name    PSize              Offset               Used              Total\r
                  pc.ram    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000\r
   0000:00:01.0/vga.vram    4 KiB  0x0000000010080000 0x0000000001000000 0x0000000001000000\r
`,
  `              Block Name    PSize              Offset               Used              Total                HVA  RO
                  pc.ram    2 MiB  0x0000000000000000 0x0000000010000000 0x0000000010000000 0x00007f6a77e00000  rw
`,
];

export const MTREE = `FlatView #0\r
 AS "cpu-smm-0", root: memory\r
 Root memory region: memory\r
  0000000000000000-000000000fffffff (prio 0, ram): elsewhere\r
\r
FlatView #2\r
 AS "memory", root: system\r
 Root memory region: system\r
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM\r
  00000000000c0000-00000000000dffff (prio 0, rom): pc.ram @00000000000c0000 KVM\r
\r
`;

export const ROMS = `addr=0000000000100000 size=0x0003e8 mem=ram name="a.elf ELF program header segment 0"
addr=00000000fffc0000 size=0x040000 mem=rom name="bios-256k.bin"
`;

export const NETWORK = `hub 0\r
 \\ hub0port0: rtl8139.0: index=0,type=nic,model=rtl8139,macaddr=52:54:00:12:34:57\r
virtio-net-pci.0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56\r
 \\ t0: index=0,type=tap,ifname=tap0,script=no,downscript=no\r
`;

export const MAPS = `7f6a77e00000-7f6a87e00000 rw-p 00000000 00:00 0 \n7f6a87e00000-7f6a87e01000 ---p 00000000 00:00 0 [heap]\n`;

export const QMP_LINES = [
  '{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"}, "capabilities": ["oob"]}}',
  '{"return": {"a": 18446744073709551615, "b": [1.5e3, -9007199254740993, "\\u20ac\\\\"]}, "id": 3}',
  '{"id": 4, "error": {"class": "GenericError", "desc": "no"}}',
  '{"timestamp": {"seconds": 1700000000, "microseconds": 5}, "event": "STOP", "data": {}}',
  '',
].join('\r\n');

export const DESCRIPTION: VmDescription = {
  qemu: { major: 7, minor: 2, micro: 22 },
  machine: 'pc-q35-7.2',
  accelerator: 'tcg',
  ramBlocks: [{ name: 'pc.ram', sizeBytes: 1 << 28 }],
  cpus: {
    count: 2,
    types: ['qemu64-x86_64-cpu'],
    topology: { cpus: 2 },
    features: { '0x1.0 EDX': 0x78bfbfd },
  },
  nics: [{ id: 'net0', model: 'virtio-net-pci', mac: '52:54:00:12:34:56' }],
  pci: [
    {
      address: '0:1.0',
      class: 0x200,
      vendor: 0x1af4,
      device: 0x1000,
      subsystemVendor: 0x1af4,
      subsystem: 1,
      irqPin: 1,
    },
  ],
  devices: [{ path: '/machine/peripheral/net0', type: 'virtio-net-pci' }],
  disks: [
    {
      id: 'vda',
      sizeBytes: 4096,
      readOnly: false,
      removable: false,
      copy: 'copied',
      bufferBytes: 1,
      worldWideId: null,
    },
  ],
  diskOwner: null,
  sections: [{ name: 'timer', instance: 0, version: 2 }],
};
