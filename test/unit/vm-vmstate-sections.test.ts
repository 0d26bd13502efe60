import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parseSections } from '../../src/vm/vmstate-sections.ts';

interface Saved {
  name: string;
  instance: number;
  version: number;
  data: Uint8Array;
}

const be32 = (value: number) => [value >>> 24, (value >>> 16) & 0xff, (value >>> 8) & 0xff, value & 0xff];

/** What qemu_savevm_state_complete_precopy_non_iterable writes, put together the slow way. */
function stream(sections: Saved[]): Uint8Array {
  const bytes = [...Buffer.from('QEVM'), ...be32(3)];
  for (const [id, { name, instance, version, data }] of sections.entries()) {
    bytes.push(
      4,
      ...be32(id),
      name.length,
      ...Buffer.from(name),
      ...be32(instance),
      ...be32(version),
      ...data,
      0x7e,
      ...be32(id),
    );
  }
  return Uint8Array.from([...bytes, 0]);
}

const section = fc.record({
  name: fc.stringMatching(/^[a-z0-9:./_-]{1,40}$/),
  instance: fc.nat(0xffffffff),
  version: fc.nat(100),
  // Bytes that could be taken for the end of the section.
  data: fc
    .array(fc.constantFrom(0, 1, 4, 0x7e, 0xff, 0x61), { maxLength: 60 })
    .map((bytes) => Uint8Array.from(bytes)),
});

const headers = (sections: Saved[]) =>
  sections.map(({ name, instance, version }) => ({ name, instance, version }));

describe('parseSections', () => {
  it('finds the sections that were put in', () => {
    fc.assert(
      fc.property(fc.array(section, { maxLength: 8 }), (sections) => {
        expect(parseSections(stream(sections))).toEqual(headers(sections));
      }),
    );
  });

  it('reads a view into a larger buffer', () => {
    const sections = [{ name: 'timer', instance: 0, version: 2, data: Uint8Array.of(1, 2, 3) }];
    const bytes = stream(sections);
    const larger = new Uint8Array(bytes.length + 20);
    larger.set(bytes, 10);
    expect(parseSections(larger.subarray(10, 10 + bytes.length))).toEqual(headers(sections));
  });

  it('refuses a state that was cut anywhere', () => {
    const data = new Uint8Array(20);
    const bytes = stream([
      { name: 'cpu', instance: 0, version: 12, data },
      { name: 'apic', instance: 1, version: 3, data },
    ]);
    for (let length = 0; length < bytes.length; length += 1) {
      expect(() => parseSections(bytes.subarray(0, length)), `${length} bytes`).toThrow();
    }
  });

  it.each([
    ['nothing', []],
    ['another magic', [...Buffer.from('QEVX'), ...be32(3), 0]],
    ['another version', [...Buffer.from('QEVM'), ...be32(2), 0]],
    ['another kind of section', [...Buffer.from('QEVM'), ...be32(3), 1, 0, 0, 0, 0]],
  ])('refuses %s', (_, bytes) => {
    expect(() => parseSections(Uint8Array.from(bytes))).toThrow();
  });
});
