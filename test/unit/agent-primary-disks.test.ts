/** The primary's disks when their VM is gone. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { Log } from '../../src/agent/log.ts';
import { PrimaryDisks } from '../../src/agent/primary-disks.ts';
import { FakeQmp } from './vm-fakes.ts';

const SIZE_BYTES = 1 << 20;

/** One disk, in a QEMU that is this very process. */
function fakeQemu(): FakeQmp {
  const folder = mkdtempSync(path.join(tmpdir(), 'colo-disks-'));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  const file = path.join(folder, 'd0');
  writeFileSync(file, '');
  const inserted = { ro: false, file, drv: 'raw', 'node-name': 'n0', image: { 'virtual-size': SIZE_BYTES } };
  const qmp = new FakeQmp({
    'query-jobs': [],
    'query-named-block-nodes': [],
    'query-block-exports': [],
    'query-block': [{ device: '', qdev: 'd0', removable: false, inserted }],
  });
  return Object.assign(qmp, { peer: { pid: process.pid } });
}

test('what the disks are is still told when they are closed: the agent has things to say while it ends', async () => {
  const log = new Log('error', () => ({ vm: 'test', role: 'primary', epoch: undefined }));
  const exceptions = { ungatedDisks: [], sharedDisks: [] };
  const options = { vm: 'test', bufferBytes: 4 << 20, exceptions, log };
  const disks = await PrimaryDisks.attach(fakeQemu().client, (body) => body(), options);
  const before = disks.status();
  expect(before).toEqual([expect.objectContaining({ id: 'd0', state: 'absent', sizeBytes: SIZE_BYTES })]);
  disks.close();
  expect(disks.status()).toEqual(before);
  disks.close();
  expect(disks.status()).toEqual(before);
});
