/** What single checks of the doctor make of what they find; whole set-ups are test/e2e/doctor.test.ts. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { disks, replication } from '../../src/doctor/checks/disks.ts';
import { availableMemory, judgeKernel } from '../../src/doctor/checks/host.ts';
import { judgeCustoms } from '../../src/doctor/checks/libvirt.ts';
import { judgeClock } from '../../src/doctor/checks/peer.ts';
import { devices, nics, runState } from '../../src/doctor/checks/vm.ts';
import { judgeWatchdog } from '../../src/doctor/checks/watchdog.ts';
import { examine } from '../../src/doctor/doctor.ts';
import { type Check, NotAsked, ok } from '../../src/doctor/finding.ts';
import type { Role } from '../../src/doctor/options.ts';
import type { Patient } from '../../src/doctor/patient.ts';
import { checkPortrait, readCpu } from '../../src/doctor/portrait.ts';
import { type Answer, FakeQmp, fakeProcess, type ProcFiles } from './vm-fakes.ts';

function folderOf(files: Record<string, string>): string {
  const folder = mkdtempSync(path.join(tmpdir(), 'colo-doctor-'));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(path.dirname(path.join(folder, name)), { recursive: true });
    writeFileSync(path.join(folder, name), content);
  }
  return folder;
}

test.each([
  ['6.18.4-1.x86_64', 'x64', 'ok'],
  ['7.0.0', 'x64', 'ok'],
  ['6.9.0', 'x64', 'ok'],
  ['6.8.12', 'x64', 'warn'],
  ['6.7.1', 'x64', 'warn'],
  ['6.1.0-32-amd64', 'x64', 'warn'],
  ['5.14.0-503.el9', 'x64', 'warn'],
  ['6.18.4', 'arm64', 'fail'],
])('Linux %s on %s: %s', (version, architecture, verdict) => {
  const finding = judgeKernel(version, architecture);
  expect(finding.verdict).toBe(verdict);
  expect(finding.remedy === '').toBe(verdict === 'ok');
});

test.each([
  [false, 'destroy', 'restart', 'ok', ''],
  [true, 'destroy', 'restart', 'warn', 'virsh autostart --disable web1'],
  [false, 'restart', 'restart', 'warn', 'let them be destroy and restart (virsh edit web1)'],
  [
    true,
    'preserve',
    'restart',
    'warn',
    'virsh autostart --disable web1; let them be destroy and restart (virsh edit web1)',
  ],
  [false, 'destroy', 'destroy', 'warn', 'let them be destroy and restart (virsh edit web1)'],
])(
  'libvirt: autostart %s, on_poweroff %s, on_reboot %s: %s',
  (autostart, onPoweroff, onReboot, verdict, remedy) => {
    expect(judgeCustoms('web1', { autostart, onPoweroff, onReboot })).toMatchObject({ verdict, remedy });
  },
);

describe('memory that is left', () => {
  const meminfo = 'MemTotal:       16000 kB\nMemAvailable:    8000 kB\n';

  test("is the host's where no control group says less", () => {
    const proc = folderOf({ meminfo, 'self/cgroup': '0::/system.slice/colo.service\n' });
    const groups = folderOf({ 'system.slice/memory.max': 'max\n', 'system.slice/memory.current': '1\n' });
    expect(availableMemory(proc, groups)).toEqual({ bytes: 8000 * 1024, limit: 'this host' });
  });

  test('is that of the tightest group above', () => {
    const proc = folderOf({ meminfo, 'self/cgroup': '0::/system.slice/colo.service\n' });
    const groups = folderOf({
      'system.slice/memory.max': '3000000\n',
      'system.slice/memory.current': '1000000\n',
      'system.slice/colo.service/memory.max': '2900000\n',
      'system.slice/colo.service/memory.current': '100000\n',
    });
    expect(availableMemory(proc, groups)).toEqual({
      bytes: 2_000_000,
      limit: 'the control group /system.slice',
    });
  });

  test('without control groups of version 2', () => {
    const proc = folderOf({ meminfo, 'self/cgroup': '4:memory:/x\n' });
    expect(availableMemory(proc, '/nonexistent').limit).toBe('this host');
  });
});

describe('the watchdog', () => {
  const known = (state: string) =>
    folderOf({
      'watchdog0/dev': '1:3\n', // that of /dev/null
      'watchdog0/state': `${state}\n`,
      'watchdog0/identity': 'iTCO_wdt\n',
    });

  test("isn't missed where nobody asks for one", () => {
    expect(judgeWatchdog(null).verdict).toBe('ok');
  });

  test('is there', () => {
    expect(judgeWatchdog('/dev/null', known('inactive'))).toMatchObject({
      verdict: 'ok',
      found: '/dev/null (iTCO_wdt) is there, and not armed',
    });
  });

  test.each<[string, () => [string, string?], RegExp]>([
    ['has no device', () => ['/dev/none', '/none'], /^opening the watchdog \/dev\/none: no such file/],
    ['is a plain file', () => [path.join(folderOf({ a: '' }), 'a')], /is no watchdog: it is no device$/],
    ['is another device', () => ['/dev/zero', known('inactive')], /is no watchdog: the kernel has none/],
    ['has another user', () => ['/dev/null', known('active')], /is in use by another program/],
  ])('%s', (_, given, text) => {
    const finding = judgeWatchdog(...given());
    expect(finding.verdict).toBe('fail');
    expect(finding.found).toMatch(text);
    expect(finding.remedy).toContain('--watchdog');
  });

  test("can't be told from other devices by a kernel without sysfs for it", () => {
    expect(judgeWatchdog('/dev/null', '/nonexistent').verdict).toBe('ok');
  });
});

test.each([
  [0.4, 1, 'ok', /^the peer's is 0 ms ahead/],
  [-999, 1, 'ok', /999 ms behind/],
  [1500, 1, 'warn', /1\.5 s ahead .*jumps/],
  [1500, 600, 'ok', /give or take 600/],
  [-61_000, 1, 'fail', /61\.0 s behind/],
])('a clock that is %d ms ahead, give or take %d: %s', (aheadMs, errorMs, verdict, text) => {
  const finding = judgeClock(aheadMs, errorMs);
  expect(finding.verdict).toBe(verdict);
  expect(finding.found).toMatch(text);
});

describe('a VM', () => {
  const HEALTHY: Record<string, Answer> = {
    'query-status': { running: true, status: 'running' },
    'query-migrate': {},
    'query-jobs': [],
    'query-block': [],
    'query-block-exports': [],
    'query-chardev': [],
    'query-qmp-schema': [],
    'qom-list': [],
    'info network': '',
  };
  const TAP =
    'net0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:01\r\n \\ n0: index=0,type=tap,x=y\r\n';

  function patient(
    answers: Record<string, Answer>,
    files: ProcFiles = {},
    { role = 'primary' as Role, peer = null as object | null } = {},
  ): Patient {
    const qmp = new FakeQmp({ ...HEALTHY, ...answers }).client;
    const exceptions = { ungatedNics: [], ungatedDisks: [], sharedDisks: [] };
    const vm = { qmp, process: fakeProcess(files), exceptions };
    const options = { peer, qmpPath: '/run/a.qmp' };
    return { options, vm: async () => vm, role: async () => role } as unknown as Patient;
  }

  test('with vhost: by the command line and the files of its QEMU', async () => {
    const commandLine = ['qemu', '-netdev', 'tap,id=n0,vhost=on', '-device', 'virtio-net-pci,netdev=n0'];
    const finding = await nics.run(
      patient({ 'info network': TAP }, { commandLine, openFiles: ['/dev/vhost-net'] }),
    );
    expect(finding).toEqual({
      verdict: 'fail',
      found:
        "NIC net0: its output can't be held: the kernel moves its frames (vhost); start it with vhost=off",
      remedy: 'or leave its output unprotected: --ungated net0',
    });
  });

  test('is looked at as the primary that a standby may become', async () => {
    const files = { openFiles: ['/dev/vhost-net'] };
    const answers = { 'info network': TAP };
    const alone = await nics.run(patient(answers, files, { role: 'secondary' }));
    expect(alone).toMatchObject({ verdict: 'warn', found: expect.stringMatching(/^after a take-over: NIC/) });
    const succeeding = await nics.run(patient(answers, files, { role: 'secondary', peer: {} }));
    expect(succeeding).toMatchObject({ verdict: 'fail', found: expect.stringMatching(/^NIC net0/) });
  });

  test('with a gate that a dead agent has left', async () => {
    const left = { 'query-chardev': [{ label: 'colo-gate-1-1-0-held', filename: '' }] };
    expect(await nics.run(patient({ 'info network': TAP, ...left }))).toMatchObject({
      verdict: 'warn',
      found: expect.stringContaining('an output gate is in place'),
    });
    expect(await nics.run(patient({ 'info network': TAP }))).toMatchObject({
      verdict: 'ok',
      found: 'can be held: net0 (tap)',
    });
  });

  test('with a device that works outside QEMU', async () => {
    const found = await devices.run(patient({}, { openFiles: ['/dev/vfio/12'] }));
    expect(found).toMatchObject({ verdict: 'fail', found: 'QEMU: it has a VFIO device open' });
  });

  test('that migrates', async () => {
    const found = await runState.run(patient({ 'query-migrate': { status: 'active' } }));
    expect(found).toMatchObject({ verdict: 'fail', found: 'VM: a migration is active' });
  });

  const raw = (file: string, drv = 'raw') => [
    {
      device: 'd',
      qdev: 'vda',
      removable: false,
      inserted: { ro: false, file, drv, image: { 'virtual-size': 1_000_000 } },
    },
  ];

  test("whose disk a standby can't write", async () => {
    const qcow2 = patient({ 'query-block': raw('/a.qcow2', 'qcow2') }, {}, { role: 'secondary' });
    expect(await disks.run(qcow2)).toMatchObject({
      verdict: 'fail',
      found: expect.stringContaining("is qcow2 here: the standby's disks must be raw"),
    });
  });

  test("whose NBD server is somebody else's", async () => {
    const schema = [
      'blockdev-add',
      'blockdev-mirror',
      'block-job-cancel',
      'block-export-add',
      'nbd-server-start',
    ];
    const answers = {
      'query-block': raw('/a.raw'),
      'query-qmp-schema': schema.map((name) => ({ name, 'meta-type': 'command' })),
      'query-block-exports': [{ id: 'backup0', 'node-name': 'x' }],
    };
    expect(await replication.run(patient(answers))).toMatchObject({
      verdict: 'fail',
      found: expect.stringContaining("QEMU's NBD server is in use by somebody else"),
    });
  });
});

describe('all checks', () => {
  const check = (run: Check['run'], remedy?: string): Check => ({
    name: 'nics',
    title: 'a title',
    fault: 'configuration',
    run,
    ...(remedy !== undefined && { remedy }),
  });
  const nobody = {} as Patient;

  test('one that throws has failed, with what to do, and the next is run', async () => {
    const broken = async () => Promise.reject(new Error('no such thing'));
    const examined = await examine(nobody, [
      check(broken),
      check(broken, 'mend it'),
      check(() => {
        throw new TypeError('a bug');
      }),
      check(() => Promise.reject(new NotAsked('nobody asked'))),
      check(async () => ok('well')),
    ]);
    expect(examined.map(({ verdict, found, remedy }) => [verdict, found, remedy])).toEqual([
      ['fail', 'no such thing', 'docs/doctor.md says what `nics` looks at'],
      ['fail', 'no such thing', 'mend it'],
      ['fail', 'a bug', 'docs/doctor.md says what `nics` looks at'],
      ['not asked', 'nobody asked', ''],
      ['ok', 'well', ''],
    ]);
  });

  test("what an earlier one has told isn't told again", async () => {
    const closed = Object.assign(new Error('denied'), { code: 'EACCES', path: '/proc/7/fd' });
    const fails = (name: Check['name']) => ({ ...check(() => Promise.reject(closed)), name });
    const examined = await examine(nobody, [fails('devices'), fails('ptrace'), fails('nics')]);
    expect(examined.map(({ verdict, found }) => [verdict, found])).toEqual([
      ['fail', 'denied'],
      ['fail', 'denied'],
      ['not asked', 'it needs what `ptrace` looks at'],
    ]);
  });

  test('one that never ends has failed, too', async () => {
    vi.useFakeTimers();
    onTestFinished(() => void vi.useRealTimers());
    const examined = examine(nobody, [check(() => new Promise(() => {}))]);
    await vi.advanceTimersByTimeAsync(20_000);
    expect(await examined).toMatchObject([{ verdict: 'fail', found: 'no answer within 20 s' }]);
  });
});

test("a processor's features are read whatever their order", () => {
  const folder = folderOf({
    cpuinfo: 'processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: sse fpu avx\n',
  });
  expect(readCpu(path.join(folder, 'cpuinfo'))).toEqual({
    model: 'Some CPU @ 2 GHz',
    flags: ['avx', 'fpu', 'sse'],
  });
});

test.each<[string, unknown]>([
  ['nothing', undefined],
  ['no object', 7],
  ['no processor', { version: '1', host: 'a', kernel: '6', role: null, description: null }],
  [
    "a terminal's control characters",
    {
      version: '\x1b[2J',
      host: 'a',
      kernel: '6',
      cpu: { model: '', flags: [] },
      role: null,
      description: null,
    },
  ],
  [
    'another role',
    { version: '1', host: 'a', kernel: '6', cpu: { model: '', flags: [] }, role: 'x', description: null },
  ],
])('a portrait with %s is refused', (_, value) => {
  expect(() => checkPortrait(value)).toThrow(/can't be read/);
});
