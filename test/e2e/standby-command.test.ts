/** `colo-agent standby`: the standby's QEMU from the running primary's, started by the command; it is protected with, outlives its agent, and takes over. */
import { mkdirSync, readFileSync, rmdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { QmpClient } from '../../src/qmp/client.ts';
import type { StandbyPlan } from '../../src/standby/plan.ts';
import { hasSystemd, type StartedStandby } from '../../src/standby/start.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { StreamClient } from '../../src/testbed/client.ts';
import { checkDisks } from '../../src/testbed/disk-clients.ts';
import { TestNetwork } from '../../src/testbed/network.ts';
import type { TestVm } from '../../src/testbed/vm.ts';
import { monotonicMs } from '../../src/testbed/wait.ts';
import { colo, coloWithin } from './support/cli.ts';
import { isAlive, makePlan, startPlan } from './support/planned-standby.ts';
import {
  type GuestOptions,
  PROTECT_MS,
  startPrimary,
  startSecondary,
  startVm,
  waitBooted,
} from './support/protection.ts';

const cleanup = new Cleanup();
let network: TestNetwork;
let vm: TestVm;

beforeAll(async () => {
  network = cleanup.own(await TestNetwork.create());
  const guest: GuestOptions = {
    guest: 'linux',
    network,
    disks: [
      { id: 'd0', sizeMiB: 32, format: 'qcow2' },
      { id: 'd1', sizeMiB: 32, cache: 'none', bus: 'virtio-scsi', namedNodes: true },
    ],
    append: 'colo.services=counter,diskcheck',
    extraArgs: ['-vnc', 'none'],
  };
  vm = await startVm(cleanup, 'web1', guest, false);
  await waitBooted(vm, guest);
});
afterAll(() => cleanup.run());

describe('colo-agent standby', () => {
  test('makes, starts, and the standby takes over; its agent may die before', async () => {
    const tap = await network.addTap();
    const plan = await makePlan(cleanup, ['--qmp', vm.qmpPath, '--tap', `net0=${tap}`]);
    const standby = await startPlan(cleanup, network, plan);
    expect(plan.disks.map(({ id, file }) => [id, statSync(file).size])).toEqual([
      ['d0', 32 << 20],
      ['d1', 32 << 20],
    ]);
    const first = await startSecondary(cleanup, standby, ['--witness', 'none']);
    first.agent.kill();
    await first.agent.exited;
    expect(isAlive(standby.pid)).toBe(true);

    const { agent: secondary, listen } = await startSecondary(cleanup, standby, ['--witness', 'none']);
    const client = cleanup.own(await StreamClient.connect(network));
    const primary = await startPrimary(cleanup, vm, listen);
    await primary.waitState('PROTECTED', PROTECT_MS);
    const killedAtMs = monotonicMs();
    vm.kill();
    await secondary.waitState('RUNNING', 60_000);
    await client.waitAfter(killedAtMs + 1, 60_000);
    await checkDisks(network, 60_000);
    expect(client.check).toMatchObject({ gaps: 0, regressions: 0 });

    secondary.kill();
    await secondary.exited;
    await client.waitAfter(monotonicMs(), 60_000);
    expect(isAlive(standby.pid)).toBe(true);
    const qmp = await QmpClient.connect(standby.qmpPath);
    expect(await qmp.execute('query-status')).toMatchObject({ running: true });
    qmp.close();
  });
});

describe('colo-agent standby --start', () => {
  let plain: TestVm;
  let plan: StandbyPlan;

  beforeAll(async () => {
    plain = await startVm(cleanup, 'plain', { guest: 'baremetal' }, false);
    plan = await makePlan(cleanup, ['--qmp', plain.qmpPath]);
  });

  const start = (changed: Partial<StandbyPlan>, ...args: string[]) =>
    coloWithin([], JSON.stringify({ ...plan, ...changed }), 'standby', '--from', '-', '--start', ...args);

  test("says what isn't on this host, and what QEMU said when it ends", async () => {
    const refused = await start({ needed: [{ what: 'disk cd0, read-only', path: '/no/such.iso' }] });
    expect(refused.code).toBe(78);
    expect(refused.stderr).toContain("/no/such.iso isn't on this host");
    const file = `${plan.folder}/d0.raw`;
    const command = [...plan.command, '-device', 'no-such-device'];
    const ended = await start({ command, disks: [{ id: 'd0', file, sizeBytes: 512 }] }, '--no-scope');
    expect(ended.code).toBe(69);
    expect(ended.stderr).toMatch(/QEMU ended \(status 1\).*no-such-device/s);
    expect(statSync(file, { throwIfNoEntry: false })).toBeUndefined();
  });

  test('ends a QEMU that is no standby', async () => {
    const refused = await start({ command: plan.command.filter((word) => word !== '-S') }, '--no-scope');
    expect(refused.code).toBe(69);
    expect(refused.stderr).toContain('is running, not prelaunch');
    const left = await colo('standby', '--qmp', plan.qmpPath);
    expect(left.stderr).toMatch(/refused/i);
  });

  test('guest RAM lies where nobody else may look', async () => {
    const folder = `${plan.folder}-ram`;
    cleanup.add(() => rmSync(folder, { recursive: true, force: true }));
    mkdirSync(folder, { mode: 0o755 });
    const refused = await start({ privateFolders: [folder] });
    expect(refused).toMatchObject({
      code: 69,
      stderr: expect.stringContaining(`${folder} is there, and not a folder that only`),
    });
    rmdirSync(folder);
    // What fails later leaves it as it is to be.
    expect((await start({ privateFolders: [folder], command: ['/no/such/qemu', '-S'] })).code).toBe(69);
    expect(statSync(folder).mode & 0o777).toBe(0o700);
  });

  test('what belongs to the other host is refused, not overheard', async () => {
    const { code, stderr } = await start({}, '--tap', 'net0=tap9');
    expect({ code, stderr }).toMatchObject({
      code: 64,
      stderr: expect.stringContaining("--tap belongs to the primary's host"),
    });
  });

  test('leaves a disk that is there as it is, and one that is longer alone', async () => {
    const file = `${plan.folder}-disk`;
    writeFileSync(file, 'somebody else');
    const refused = await start({ disks: [{ id: 'd0', file, sizeBytes: 4 }] });
    expect(refused.code).toBe(78);
    expect(refused.stderr).toContain(`${file} has 13 bytes, the primary's disk 4: it is another disk`);
    const planned = { ...plan, disks: [{ id: 'd0', file, sizeBytes: 1024 }] };
    await startPlan(cleanup, network, planned);
    expect(readFileSync(file, 'utf8')).toBe('somebody else');
    const again = await start(planned, '--no-scope');
    expect(again.code).toBe(69);
    expect(again.stderr).toContain('a QEMU answers');
  });

  test('--scope is a unit of systemd, where that runs', async () => {
    // The one before it has its socket still.
    const own = await makePlan(cleanup, ['--qmp', plain.qmpPath]);
    const { code, stdout, stderr } = await start(own, '--scope', '--json');
    if (hasSystemd()) {
      expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
      const { pid, unit } = JSON.parse(stdout) as StartedStandby;
      cleanup.add(() => void process.kill(pid, 'SIGKILL'));
      expect(readFileSync(`/proc/${pid}/cgroup`, 'utf8')).toContain(unit);
    } else {
      expect({ code, stderr }).toMatchObject({ code: 69, stderr: expect.stringContaining('systemd') });
    }
  });
});
