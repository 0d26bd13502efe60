import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import {
  bootId,
  type DiskRecord,
  DiskRecordError,
  RECORDS_FOLDER,
  readRecord,
  recordPath,
  writeRecord,
} from '../../src/vm/disk-record.ts';

const RECORD: DiskRecord = {
  vm: 'web1',
  disk: 'vda',
  role: 'copy',
  generation: 3,
  lineage: 'ab'.repeat(16),
  bootId: bootId(),
};

function image(): string {
  const folder = mkdtempSync(path.join(tmpdir(), 'colo-record-'));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  const file = path.join(folder, 'disk.raw');
  writeFileSync(file, '');
  return file;
}

test('a record lies beside its image, whole, and is replaced', async () => {
  const file = image();
  expect(readRecord(file)).toBeNull();
  await writeRecord(file, RECORD);
  await writeRecord(file, { ...RECORD, role: 'source', generation: 4 });
  expect(readRecord(file)).toEqual({ ...RECORD, role: 'source', generation: 4 });
  expect(readdirSync(path.dirname(file)).sort()).toEqual(['disk.raw', 'disk.raw.colo']);
});

test('a full file system takes a record in place of an old one', async () => {
  const folder = mkdtempSync(path.join(tmpdir(), 'colo-record-'));
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', folder]);
  onTestFinished(() => {
    execFileSync('umount', [folder]);
    rmSync(folder, { recursive: true });
  });
  const file = path.join(folder, 'disk.raw');
  writeFileSync(file, '');
  await writeRecord(file, { ...RECORD, vm: 'a longer name than the next' });
  expect(() => writeFileSync(file, Buffer.alloc(1 << 20))).toThrow(/ENOSPC/);
  await writeRecord(file, { ...RECORD, role: 'source', generation: 4 });
  expect(readRecord(file)).toEqual({ ...RECORD, role: 'source', generation: 4 });
});

test('what is no plain file has its record in a folder of ours, under a name of its own', () => {
  expect(path.dirname(recordPath('/dev/null'))).toBe(RECORDS_FOLDER);
  expect(recordPath('/dev/null')).not.toBe(recordPath('/dev/zero'));
  expect(path.dirname(recordPath('nbd://host/export'))).toBe(RECORDS_FOLDER);
});

test.each([
  ['no JSON', '{'],
  ['another kind of JSON', '[]'],
  ['null', 'null'],
  ['a missing member', JSON.stringify({ ...RECORD, lineage: undefined })],
  ['an unknown role', JSON.stringify({ ...RECORD, role: 'boss' })],
  ['a generation that is no number', JSON.stringify({ ...RECORD, generation: '3' })],
  ['a generation below zero', JSON.stringify({ ...RECORD, generation: -1 })],
  ['a lineage that no peer would take', JSON.stringify({ ...RECORD, lineage: 'ab' })],
])('a damaged record is an error that names the file: %s', (_, text) => {
  const file = image();
  writeFileSync(`${file}.colo`, text);
  expect(() => readRecord(file)).toThrow(DiskRecordError);
  expect(() => readRecord(file)).toThrow(`${file}.colo is no disk record`);
});

test('a record that cannot be written is an error that names the file', async () => {
  await expect(writeRecord('/proc/version', RECORD)).rejects.toThrow(
    /can't record the disk's generation in \/proc\/version\.colo/,
  );
});
