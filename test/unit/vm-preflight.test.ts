import { describe, expect, it } from 'vitest';
import { assertProtectable, assertUsableAsStandby, PreflightError } from '../../src/vm/preflight.ts';
import { type Answer, FakeQmp, fakeProcess, type ProcFiles } from './vm-fakes.ts';

const COMMANDS = [
  ...[
    'xen-save-devices-state',
    'add-fd',
    'getfd',
    'chardev-add',
    'object-add',
    'set-action',
    'human-monitor-command',
  ],
  ...['snapshot-load', 'blockdev-add', 'announce-self'],
  ...['blockdev-mirror', 'block-job-cancel', 'block-export-add', 'nbd-server-start'],
];
const schema = (commands: string[]) => commands.map((name) => ({ name, 'meta-type': 'command' }));

const HEALTHY: Record<string, Answer> = {
  'query-qmp-schema': schema(COMMANDS),
  'query-status': { running: true, status: 'running' },
  'query-migrate': {},
  'query-jobs': [],
  'query-block': [],
  'qom-list': [],
  'info network': '',
};

async function problems(
  answers: Record<string, Answer>,
  files: ProcFiles = {},
  accepted: string[] = [],
): Promise<string[]> {
  const qmp = new FakeQmp({ ...HEALTHY, ...answers }).client;
  const exceptions = { ungatedNics: accepted, ungatedDisks: accepted, sharedDisks: [] };
  const error = await assertProtectable(qmp, 1, exceptions, fakeProcess(files)).catch((reason) => reason);
  if (error === undefined) return [];
  expect(error).toBeInstanceOf(PreflightError);
  return (error as PreflightError).problems.map(({ where, what }) => `${where}: ${what}`);
}

const device = (type: string): Answer => {
  return ({ path }: Record<string, unknown>) =>
    path === '/machine/peripheral' ? [{ name: 'dev0', type: `child<${type}>` }] : [];
};
const disk = (ro: boolean) => [
  {
    device: 'd',
    qdev: 'vda',
    removable: false,
    inserted: { ro, file: 'a.raw', drv: 'raw', image: { 'virtual-size': 1 } },
  },
];
const vhostNic =
  'net0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:01\r\n \\ n0: index=0,type=tap,x=y\r\n';

describe('assertProtectable', () => {
  it('has nothing against a healthy VM', async () => {
    expect(await problems({})).toEqual([]);
    expect(await problems({ 'query-migrate': { status: 'cancelled' } })).toEqual([]);
    expect(await problems({ 'query-block': disk(true) })).toEqual([]);
    expect(await problems({ 'query-block': disk(false) })).toEqual([]);
    const left = [{ id: 'colo-disk-1-1', type: 'mirror', status: 'ready' }];
    expect(await problems({ 'query-jobs': left })).toEqual([]);
    expect(await problems({ 'query-block': [{ device: 'cd', removable: true }] })).toEqual([]);
  });

  it.each<[string, Record<string, Answer>, ProcFiles?]>([
    [
      'QEMU: it lacks the QMP command set-action',
      { 'query-qmp-schema': schema(COMMANDS.filter((name) => name !== 'set-action')) },
    ],
    ['VM: it is in state internal-error', { 'query-status': { running: false, status: 'internal-error' } }],
    ['VM: a migration is active', { 'query-migrate': { status: 'active' } }],
    [
      "VM: its state can't be moved: x blocks it",
      { 'query-migrate': { 'blocked-reasons': ['x blocks it'] } },
    ],
    [
      'job mirror0: a mirror job is ready',
      { 'query-jobs': [{ id: 'mirror0', type: 'mirror', status: 'ready' }] },
    ],
    [
      'device dev0: vfio-pci works outside QEMU: neither its state nor what it writes can be copied',
      { 'qom-list': device('vfio-pci') },
      { openFiles: ['/dev/vfio/12'] },
    ],
    [
      'device dev0: vhost-vsock-pci works outside QEMU: neither its state nor what it writes can be copied',
      { 'qom-list': device('vhost-vsock-pci') },
    ],
    [
      "disk dev0: it is SCSI passthrough: the guest's writes don't pass QEMU's block layer and can't be mirrored",
      {
        'qom-list': device('scsi-block'),
        'query-block': [{ ...disk(false)[0], qdev: 'dev0' }],
      },
    ],
    ['QEMU: it has a VFIO device open', {}, { openFiles: ['/dev/null', '/dev/vfio/12'] }],
    [
      "NIC net0: its output can't be held: the kernel moves its frames (vhost); start it with vhost=off",
      { 'info network': vhostNic },
      { openFiles: ['/dev/vhost-net'] },
    ],
    [
      'QEMU: it lacks the QMP command blockdev-mirror',
      {
        'query-block': disk(false),
        'query-qmp-schema': schema(COMMANDS.filter((name) => name !== 'blockdev-mirror')),
      },
    ],
  ])('refuses: %s', async (problem, answers, files) => {
    expect(await problems(answers, files)).toEqual([problem]);
  });

  it('accepts what the user accepts, and nothing else', async () => {
    const files = { openFiles: ['/dev/vhost-net'] };
    const answers = { 'info network': vhostNic, 'query-block': disk(false) };
    expect(await problems(answers, files, ['net0', 'vda'])).toEqual([
      'disk net0: the VM has none of this name',
    ]);
    expect(await problems(answers, files, ['vda'])).toHaveLength(1);
  });

  it('tells all problems at once, with what to do', async () => {
    const qmp = new FakeQmp({ ...HEALTHY, 'query-migrate': { status: 'active' }, 'query-block': disk(false) })
      .client;
    const none = { ungatedNics: [], ungatedDisks: ['vdz'], sharedDisks: [] };
    await expect(assertProtectable(qmp, 1, none, fakeProcess({}))).rejects.toThrow(
      /^VM: a migration is active \(wait .*\); disk vdz: .*its disks: vda\)$/,
    );
  });
});

describe('assertUsableAsStandby', () => {
  it('asks for what a standby needs', async () => {
    const healthy = new FakeQmp(HEALTHY).client;
    await assertUsableAsStandby(healthy, 1, fakeProcess({}));
    const lacking = new FakeQmp({
      ...HEALTHY,
      'query-qmp-schema': schema(COMMANDS.filter((name) => name !== 'snapshot-load')),
    });
    await expect(assertUsableAsStandby(lacking.client, 1, fakeProcess({}))).rejects.toThrow(
      /lacks the QMP command snapshot-load/,
    );
  });
});
