/** The test bed itself: what the other end-to-end tests take for granted. */
import { once } from 'node:events';
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, expect, test, vi } from 'vitest';
import { Child, run } from '../../src/testbed/child.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { AnnounceClient, checkMemory, PORTS, request, StreamClient } from '../../src/testbed/client.ts';
import { buildGuest, packageRoot } from '../../src/testbed/guest.ts';
import { TestNetwork } from '../../src/testbed/network.ts';
import { type BlockPair, compareRam } from '../../src/testbed/ram-compare.ts';
import { kvmOpens, NOBODY_UID, TestVm, type VmOptions } from '../../src/testbed/vm.ts';
import { monotonicMs, waitFor } from '../../src/testbed/wait.ts';

const BOOT_MS = 120_000;
const MINUTES = 60_000;

const cleanup = new Cleanup();
afterEach(() => cleanup.run());

function makeFolder(): string {
  const folder = mkdtempSync(path.join(tmpdir(), 'colo-testbed-'));
  cleanup.add(() => rmSync(folder, { recursive: true }));
  return folder;
}

async function startVm(options: VmOptions): Promise<TestVm> {
  return cleanup.own(await TestVm.start(options));
}

async function makeNetwork(): Promise<TestNetwork> {
  return cleanup.own(await TestNetwork.create());
}

test('a Linux guest: counter, echo, memory check and announcements through the bridge', async () => {
  const network = await makeNetwork();
  const tap = await network.addTap();
  const vm = await startVm({
    name: 'linux',
    guest: 'linux',
    network,
    nics: [{ tap }],
    append: 'colo.services=counter,memcheck,announce colo.memcheck=4 colo.dirty=100,50',
  });
  const announcements = cleanup.own(await AnnounceClient.listen(network));
  await vm.waitConsole('GUEST-READY', BOOT_MS);
  expect(vm.console()).not.toContain('GUEST-FAILED');

  // Two clients at once, each with a stream of its own.
  const first = cleanup.own(await StreamClient.connect(network));
  const second = cleanup.own(await StreamClient.connect(network));
  await waitFor('100 lines', MINUTES, () => first.check.received >= 100 && second.check.received >= 50);
  for (const { check } of [first, second]) expect(check).toMatchObject({ gaps: 0, regressions: 0 });
  expect(second.check.lines[0]?.n).toBe(1);
  expect(first.ended).toBeUndefined();

  // A guest that stands still sends nothing, and its connection goes on where it was.
  vm.kill('SIGSTOP');
  await waitFor('stop', 5000, () => / T /.test(readFileSync(`/proc/${vm.pid}/stat`, 'utf8')));
  const stoppedMs = monotonicMs();
  await expect(first.waitAfter(stoppedMs + 100, 500)).rejects.toThrow(/no further line/);
  vm.kill('SIGCONT');
  await first.waitAfter(stoppedMs + 500, MINUTES);
  expect(first.check).toMatchObject({ gaps: 0, regressions: 0 });

  expect(await request(network, PORTS.echo, 'hello\n', MINUTES)).toBe('hello');
  expect(await checkMemory(network, MINUTES)).toBeGreaterThan(0);
  await vm.waitConsole(/memcheck ok \d+/, MINUTES);

  await announcements.waitCount(200, MINUTES);
  expect(await announcements.findUnknown(MINUTES)).toEqual([]);
  announcements.announcements.push({ sequence: '1', secret: '5', atMs: 0 });
  announcements.announcements.push({ sequence: '99999999', secret: '5', atMs: 0 });
  expect(await announcements.findUnknown(MINUTES)).toHaveLength(2);
});

test('a Linux guest with two NICs, switched off and reset from outside, QEMU as nobody', async () => {
  const network = await makeNetwork();
  const nics = [
    { tap: await network.addTap({ uid: NOBODY_UID }) },
    { tap: await network.addTap({ uid: NOBODY_UID, bridge: 1 }) },
  ];
  const vm = await startVm({
    name: 'two-nics',
    guest: 'linux',
    machine: 'pc',
    network,
    nics,
    nobody: true,
    sharedRam: true,
    append: 'colo.services=counter,power colo.ip=10.77.0.2/24,10.77.1.2/24',
  });
  expect(readFileSync(`/proc/${vm.pid}/status`, 'utf8')).toMatch(/^Uid:\t65534\t65534/m);
  await vm.waitConsole('GUEST-READY', BOOT_MS);
  expect(vm.console()).not.toContain('GUEST-FAILED');
  cleanup.own(await StreamClient.connect(network, '10.77.1.2'));

  await expect(request(network, PORTS.reset, '', MINUTES)).rejects.toThrow();
  await vm.waitConsole(/GUEST-READY.*GUEST-READY/s, BOOT_MS);
  await expect(request(network, PORTS.poweroff, '', MINUTES)).rejects.toThrow();
  expect(await vm.exited).toEqual({ code: 0, signal: null });
  expect(vm.running).toBe(false);
});

const accelerators = kvmOpens() ? (['tcg', 'kvm'] as const) : (['tcg'] as const);
if (accelerators.length === 1)
  process.stderr.write('/dev/kvm does not open here: accel=kvm was not tested\n');

for (const accel of accelerators) {
  for (const machine of ['pc', 'q35'] as const) {
    test(`the bare-metal guest under ${accel} on ${machine}`, async () => {
      const options: VmOptions = { name: 'bare', guest: 'baremetal', machine, accel, smp: 2 };
      const vm = await startVm({ ...options, append: 'pages=64', extraArgs: ['-bios', 'qboot.rom'] });
      await vm.waitConsole('ABCDEFGHIJKLMNOPABC', MINUTES);
      expect(vm.console()).not.toContain('!');
    });
  }
}

test('the bare-metal guest finds a page that was changed behind its back', async () => {
  const vm = await startVm({ name: 'bare', guest: 'baremetal', machine: 'pc', sharedRam: true });
  await vm.waitConsole(/BC$/, MINUTES);
  vm.kill('SIGSTOP');
  overwrite(vm.pid, ramOf(vm.pid).address + 0x200000n, 4096);
  vm.kill('SIGCONT');
  await vm.waitConsole(/!$/, MINUTES);
});

test("memcheck finds a page of another moment, although the page's own checksum is right", async () => {
  const network = await makeNetwork();
  await network.exec('ip', 'addr', 'add', '10.77.0.2/32', 'dev', 'lo');
  const folder = makeFolder();
  const program = path.join(folder, 'memcheck');
  await run('cc', '-O2', '-static', '-o', program, path.join(packageRoot, 'guest', 'memcheck.c'));
  // It goes to the background by itself, and its output would keep the caller waiting.
  await network.exec('sh', '-c', `${program} 1 >${folder}/console 2>&1`);
  const pid = Number(await run('ip', 'netns', 'pids', network.namespace));
  cleanup.add(() => {
    process.kill(pid, 'SIGKILL');
  });
  expect(await checkMemory(network, MINUTES)).toBeGreaterThanOrEqual(0);

  const address = firstPageOf(pid);
  const old = readMemory(pid, address);
  await waitFor('update of the page', MINUTES, () => !readMemory(pid, address).equals(old));
  process.kill(pid, 'SIGSTOP');
  writeMemory(pid, address, old);
  process.kill(pid, 'SIGCONT');
  await expect(checkMemory(network, MINUTES)).rejects.toThrow(
    /failed page 0: sequence \d+, the root says \d+/,
  );
  const console = () => readFileSync(path.join(folder, 'console'), 'utf8');
  await waitFor('complaint on the console', MINUTES, () => /MEMCHECK FAILED page 0/.test(console()));
});

test('a RAM comparison names exactly the pages that differ', async () => {
  const options: VmOptions = { name: 'bare', guest: 'baremetal', sharedRam: true, paused: true };
  const vms = [await startVm(options), await startVm({ ...options, sandbox: true })] as const;
  const [first, second] = [ramOf(vms[0].pid), ramOf(vms[1].pid)];
  const pids: [number, number] = [vms[0].pid, vms[1].pid];
  const block: BlockPair = {
    name: 'ram0',
    sizeBytes: 64 << 20,
    hostAddresses: [first.address, second.address],
  };
  expect(compareRam(pids, [block])).toEqual([]);

  overwrite(vms[1].pid, second.address + 4096n * 777n + 4088n);
  overwrite(vms[1].pid, second.address + (64n << 20n) - 8n);
  expect(compareRam(pids, [block])).toEqual([
    { block: 'ram0', page: 777 },
    { block: 'ram0', page: 16383 },
  ]);
  expect(() => compareRam(pids, [{ ...block, hostAddresses: [first.address, 4096n] }])).toThrow();
});

test('nothing stays behind: processes, namespaces, folders', async () => {
  const network = await TestNetwork.create();
  const vm = await TestVm.start({
    name: 'gone',
    guest: 'baremetal',
    network,
    nics: [{ tap: await network.addTap() }],
  });
  const folder = path.dirname(vm.qmpPath);
  await vm.destroy();
  await network.destroy();
  expect(existsSync(`/proc/${vm.pid}`)).toBe(false);
  expect(existsSync(folder)).toBe(false);
  expect(await run('ip', 'netns', 'list')).not.toContain(network.namespace);
});

test('QEMU ends with the test run, also with one that is killed', async () => {
  const script = `
    const { TestVm } = await import(${JSON.stringify(path.join(packageRoot, 'dist', 'testbed', 'vm.js'))});
    const vm = await TestVm.start({ name: 'orphan', guest: 'baremetal', nobody: true });
    process.stdout.write(vm.pid + ' ' + vm.qmpPath);`;
  const testRun = await Child.start([process.execPath, '--input-type=module', '-e', script], {
    stderrPath: path.join(makeFolder(), 'stderr'),
    pipes: true,
  });
  cleanup.add(() => testRun.stop());
  const [output] = (await once(testRun.stdout.setEncoding('utf8'), 'data')) as [string];
  const [pid, qmpPath = ''] = output.split(' ');
  cleanup.add(() => rmSync(path.dirname(qmpPath), { recursive: true }));
  expect(existsSync(`/proc/${pid}`)).toBe(true);
  await testRun.stop();
  await waitFor('end of QEMU', MINUTES, () => !existsSync(`/proc/${pid}`));
});

test('a QEMU that refuses to start says why, and leaves nothing behind', async () => {
  const folder = makeFolder();
  vi.stubEnv('TMPDIR', folder);
  cleanup.add(() => {
    vi.unstubAllEnvs();
  });
  const start = TestVm.start({ name: 'bad', guest: 'baremetal', extraArgs: ['-device', 'no-such-device'] });
  await expect(start).rejects.toThrow(/no-such-device/);
  expect(readdirSync(folder)).toEqual([]);
});

test('namespaces of a killed run are removed by the next', async () => {
  const dead = `colo-test-${readFileSync('/proc/sys/kernel/pid_max', 'utf8').trim()}-ab12cd`;
  await run('ip', 'netns', 'add', dead);
  await makeNetwork();
  expect(await run('ip', 'netns', 'list')).not.toContain(dead);
});

test('the guest is built once by several builders at the same time', async () => {
  const files = await Promise.all([buildGuest(), buildGuest(), buildGuest()]);
  expect(files[1]).toEqual(files[0]);
  expect(readFileSync(files[0].baremetal).subarray(1, 4).toString()).toBe('ELF');
});

/** Where the shared RAM of a VM lies in its QEMU. */
function ramOf(pid: number): { address: bigint } {
  const maps = readFileSync(`/proc/${pid}/maps`, 'utf8');
  const hit = /^([0-9a-f]+)-[0-9a-f]+ rw-s .*memory-backend-memfd/m.exec(maps);
  if (!hit) throw new Error(`no shared RAM in QEMU ${pid}`);
  return { address: BigInt(`0x${hit[1]}`) };
}

/** Where memcheck's pages begin. Its root's table is the page below them, because the kernel gives out addresses downwards. */
function firstPageOf(pid: number): bigint {
  const anonymous = /^([0-9a-f]+)-([0-9a-f]+) rw-p 0+ 00:00 0 *$/gm;
  for (const [, from, to] of readFileSync(`/proc/${pid}/maps`, 'utf8').matchAll(anonymous)) {
    if (BigInt(`0x${to}`) - BigInt(`0x${from}`) > 1n << 20n) return BigInt(`0x${from}`) + 4096n;
  }
  throw new Error(`no mapping of memcheck's size in process ${pid}`);
}

function overwrite(pid: number, address: bigint, bytes = 8): void {
  writeMemory(pid, address, Buffer.alloc(bytes, 0xa5));
}

function writeMemory(pid: number, address: bigint, bytes: Buffer): void {
  const file = openSync(`/proc/${pid}/mem`, 'r+');
  try {
    writeSync(file, bytes, 0, bytes.length, Number(address));
  } finally {
    closeSync(file);
  }
}

function readMemory(pid: number, address: bigint): Buffer {
  const file = openSync(`/proc/${pid}/mem`, 'r');
  const page = Buffer.alloc(4096);
  try {
    readSync(file, page, 0, page.length, address);
  } finally {
    closeSync(file);
  }
  return page;
}
