/** Which disks of a standby's QEMU may be overwritten, and by whom. No guest runs in these QEMUs. */
import { fstatSync, mkdtempSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { run } from '../../src/testbed/child.ts';
import type { DescribedDisk } from '../../src/vm/description.ts';
import { bootId, type DiskRecord, readRecord, writeRecord } from '../../src/vm/disk-record.ts';
import { type PrimaryOfDisks, StandbyDisks } from '../../src/vm/standby-disks.ts';
import { QemuProcess } from './qemu-process.ts';

const MIB = 1 << 20;
const LINEAGE = 'aa'.repeat(16);
const cleanups: (() => unknown)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

interface StandbyOptions {
  sizeBytes?: number;
  format?: 'raw' | 'qcow2';
  readOnly?: boolean;
  content?: Buffer;
  record?: Partial<DiskRecord>;
  overwrite?: string[];
}

/** A paused QEMU with one disk, `vda`. */
async function standby(options: StandbyOptions = {}): Promise<{ disks: StandbyDisks; image: string }> {
  const { sizeBytes = MIB, format = 'raw', readOnly = false, content, record, overwrite = [] } = options;
  const folder = mkdtempSync(path.join(tmpdir(), 'colo-disk-'));
  cleanups.push(() => rmSync(folder, { recursive: true }));
  const image = path.join(folder, 'disk');
  if (format === 'raw') {
    writeFileSync(image, content ?? '');
    truncateSync(image, sizeBytes);
  } else await run('qemu-img', 'create', '-q', '-f', format, image, String(sizeBytes));
  if (record)
    await writeRecord(image, {
      vm: 'web1',
      disk: 'vda',
      role: 'copy',
      generation: 1,
      lineage: LINEAGE,
      bootId: bootId(),
      ...record,
    });
  const qemu = await QemuProcess.start(
    ...['-S', '-m', '64'],
    ...['-drive', `if=none,id=d,format=${format},file=${image}${readOnly ? ',readonly=on' : ''}`],
    ...['-device', 'virtio-blk-pci,drive=d,id=vda'],
  );
  cleanups.push(() => qemu.stop());
  const qmp = await qemu.connect();
  cleanups.push(() => qmp.close());
  const disks = new StandbyDisks(qmp, overwrite);
  cleanups.push(() => disks.close());
  return { disks, image };
}

function primary(change: Partial<PrimaryOfDisks> = {}, disk: Partial<DescribedDisk> = {}): PrimaryOfDisks {
  const vda: DescribedDisk = {
    id: 'vda',
    sizeBytes: MIB,
    readOnly: false,
    removable: false,
    copy: 'copied',
    bufferBytes: MIB,
    worldWideId: null,
    ...disk,
  };
  return { vm: 'web1', generation: 2, owner: 'bb'.repeat(16), disks: [vda], ...change };
}

const DATA = Buffer.from('a boot loader, say');

describe("a standby's disk is taken when", () => {
  it.each<[string, StandbyOptions]>([
    ['nothing was ever written to it', {}],
    ['it is a copy of this VM of an older generation', { content: DATA, record: { generation: 1 } }],
    ['it is a copy of this very generation', { content: DATA, record: { generation: 2 } }],
    ['its copy never became whole', { content: DATA, record: { role: 'copying', generation: 2 } }],
    [
      'the VM ran on it, in an older generation',
      { content: DATA, record: { role: 'source', generation: 1 } },
    ],
    ['a person gives its content up', { content: DATA, overwrite: ['vda'] }],
    [
      'a person gives a newer one up',
      { content: DATA, overwrite: ['vda'], record: { role: 'source', generation: 7 } },
    ],
  ])('%s', async (_, options) => {
    const { disks, image } = await standby(options);
    expect(await disks.accept(primary())).toEqual([]);
    expect(disks.disks).toMatchObject([{ id: 'vda', file: image, sizeBytes: MIB }]);
    expect(fstatSync(disks.disks[0]?.fd ?? -1).ino).toBe(statSync(image).ino);
  });

  it('it is too short: it is made as long as the primary says', async () => {
    const { disks, image } = await standby({ sizeBytes: 0 });
    expect(await disks.accept(primary())).toEqual([]);
    expect(statSync(image).size).toBe(MIB);
  });
});

describe("a standby's disk is refused, and left as it is, when", () => {
  it.each<[string, StandbyOptions, Partial<PrimaryOfDisks>, RegExp]>([
    ['it holds what nobody knows', { content: DATA }, {}, /data of unknown origin .*--overwrite-disk vda/],
    [
      'it is of another VM',
      { content: DATA, record: { vm: 'db1' } },
      {},
      /is disk vda of VM db1 .*--overwrite-disk/,
    ],
    [
      'it is another disk of this VM',
      { content: DATA, record: { disk: 'vdb' } },
      {},
      /is disk vdb of VM web1/,
    ],
    [
      'the VM ran on it in the same generation',
      { content: DATA, record: { role: 'source', generation: 2 } },
      {},
      /isn't the older one: the VM ran on it in generation 2, and the primary's is 2/,
    ],
    [
      'the VM ran on it in a newer one',
      { content: DATA, record: { role: 'source', generation: 3 } },
      {},
      /ran on it in generation 3/,
    ],
    [
      'it is a copy of a newer one',
      { content: DATA, record: { generation: 3 } },
      {},
      /it is a copy of generation 3/,
    ],
    [
      'it is the very disk of the primary',
      { content: DATA, record: { role: 'source', lineage: LINEAGE }, overwrite: ['vda'] },
      { owner: LINEAGE },
      /the very disk that the primary runs on: .*--shared-disk vda/,
    ],
    ['it is longer', { sizeBytes: 2 * MIB }, {}, /has 2097152 bytes here, the primary's disk 1048576/],
    ['it is not raw', { format: 'qcow2' }, {}, /is qcow2 here: the standby's disks must be raw/],
    ['it is read-only', { readOnly: true }, {}, /is read-only here/],
  ])('%s', async (_, options, change, problem) => {
    const { disks, image } = await standby(options);
    const before = statSync(image);
    const problems = await disks.accept(primary(change));
    expect(problems).toHaveLength(1);
    expect(problems[0]).toMatch(/^disk vda: /);
    expect(problems[0]).toMatch(problem);
    expect(disks.disks).toEqual([]);
    expect(statSync(image)).toMatchObject({ size: before.size, mtimeMs: before.mtimeMs });
  });

  it('and those of an earlier primary stay open: its checkpoint may be taken over', async () => {
    const { disks, image } = await standby();
    await disks.accept(primary());
    expect(await disks.accept(primary({}, { sizeBytes: MIB / 2 }))).toHaveLength(1);
    expect(disks.disks).toMatchObject([{ id: 'vda' }]);
    await disks.record('source', { vm: 'web1', generation: 3 }, []);
    expect(readRecord(image)).toMatchObject({ role: 'source', generation: 3 });
  });

  it('its record is damaged', async () => {
    const { disks, image } = await standby();
    writeFileSync(`${image}.colo`, '{');
    expect(await disks.accept(primary())).toEqual([expect.stringMatching(/is no disk record/)]);
  });
});

describe('the lineage', () => {
  it('is that of the copy, while the host has not gone down since', async () => {
    const { disks } = await standby({ record: { lineage: LINEAGE } });
    await disks.accept(primary());
    expect(disks.lineages()).toEqual([LINEAGE]);
  });

  it.each<[string, StandbyOptions]>([
    ['there is no record', {}],
    ['the host went down: what it had not synced is lost', { record: { bootId: 'another boot' } }],
    ['the VM ran on it', { record: { role: 'source' } }],
  ])('is unknown when %s', async (_, options) => {
    const { disks } = await standby(options);
    expect(await disks.accept(primary())).toEqual([]);
    expect(disks.lineages()).toEqual([null]);
  });

  it('is recorded with the generation, durably, for all disks', async () => {
    const { disks, image } = await standby();
    const source = primary();
    await disks.accept(source);
    const told = disks.lineages();
    await disks.record('copying', source, told);
    const recorded = { vm: 'web1', disk: 'vda', generation: 2, bootId: bootId() };
    expect(readRecord(image)).toEqual({ ...recorded, role: 'copying', lineage: null });
    expect(disks.lineages()).toEqual([null]); // nothing has come yet
    await disks.record('copy', source, LINEAGE);
    expect(readRecord(image)).toEqual({ ...recorded, role: 'copy', lineage: LINEAGE });
    expect(disks.lineages()).toEqual([LINEAGE]);
  });
});
