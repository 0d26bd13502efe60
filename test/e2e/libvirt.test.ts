/** A domain of a real libvirtd is protected by its name, its standby made from libvirt's command line; and what libvirt does to a domain meanwhile (docs/libvirt.md). */
import { truncateSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { roleOf } from '../../src/daemon/role.ts';
import { TestAgent } from '../../src/testbed/agents.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { StreamClient } from '../../src/testbed/client.ts';
import { checkDisks } from '../../src/testbed/disk-clients.ts';
import { TestNetwork } from '../../src/testbed/network.ts';
import { monotonicMs, waitFor } from '../../src/testbed/wait.ts';
import { coloWithin } from './support/cli.ts';
import { TestLibvirt } from './support/libvirt.ts';
import { isAlive, makePlan, startPlan } from './support/planned-standby.ts';
import { BOOT_MS, moreCheckpoints, PROTECT_MS, startSecondary, VM_NAME } from './support/protection.ts';

const DOMAIN = 'web1';
/** As the daemon's configuration has it. */
const VM = {
  name: DOMAIN,
  role: 'auto',
  args: { primary: [], standby: null },
  place: 'agent.toml:1:1',
} as const;

const cleanup = new Cleanup();
let network: TestNetwork;
let libvirt: TestLibvirt;

async function define(name: string, monitor: boolean): Promise<void> {
  const disk = path.join(libvirt.folder, `${name}.raw`);
  writeFileSync(disk, '');
  truncateSync(disk, 16 << 20);
  const tap = await network.addTap();
  await libvirt.define({ name, tap, disk, append: 'colo.services=counter,diskcheck', monitor });
}

beforeAll(async () => {
  network = cleanup.own(await TestNetwork.create());
  libvirt = cleanup.own(await TestLibvirt.start(network));
  process.env['LIBVIRT_DEFAULT_URI'] = libvirt.uri;
  await define(DOMAIN, true);
  await define('plain', false);
  await libvirt.virsh('start', DOMAIN);
});
afterAll(() => cleanup.run());

describe('a domain that is no VM to protect is refused, with what to do', () => {
  const refusal = async (domain: string, exitCode: number) => {
    const { code, stderr } = await coloWithin([], '', 'standby', `--libvirt=${domain}`);
    expect(code).toBe(exitCode);
    return stderr;
  };

  test('unknown, or not running', async () => {
    expect(await refusal('nobody', 69)).toContain("failed to get domain 'nobody'");
    expect(await refusal('--help', 69)).toContain("failed to get domain '--help'");
    expect(await refusal('plain', 69)).toContain('domain plain is shut off: start it (virsh start plain');
  });

  test("with no monitor but libvirt's: the very XML to add", async () => {
    await libvirt.virsh('start', 'plain');
    const stderr = await refusal('plain', 78);
    await libvirt.virsh('destroy', 'plain');
    expect(stderr).toContain("xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'");
    expect(stderr).toContain(
      "<qemu:arg value='unix:/var/lib/libvirt/qemu/plain.monitor,server=on,wait=off'/>",
    );
  });

  test('by the doctor, in a line of its own', async () => {
    const { code, stdout } = await coloWithin([], '', 'doctor', '--libvirt', 'plain');
    expect(code).toBe(78);
    expect(stdout).toMatch(/FAIL +libvirt +domain plain is shut off/);
    expect(stdout).toMatch(/not asked +qmp, qemu, [^:]*: it needs what `libvirt` looks at/);
  });

  test('by the daemon, which waits for it', async () => {
    const plain = { ...VM, source: { libvirt: 'plain' } };
    await expect(roleOf(plain, null)).rejects.toThrow(/`libvirt` plain: domain plain is shut off/);
  });

  test('either --qmp or --libvirt', async () => {
    const both = await coloWithin([], '', 'estimate', '--libvirt', DOMAIN, '--qmp', '/x');
    expect(both).toMatchObject({ code: 64, stderr: expect.stringContaining('either by --qmp') });
  });
});

test('one that starts with its host is warned of; one that runs is to be a primary', async () => {
  const line = async () => (await coloWithin([], '', 'doctor', `--libvirt=${DOMAIN}`)).stdout;
  expect(await line()).toMatch(/ok +libvirt +web1 has a monitor for colo-agent/);
  await libvirt.virsh('autostart', DOMAIN);
  expect(await line()).toMatch(/warn +libvirt +it starts web1 with the host/);
  await libvirt.virsh('autostart', '--disable', DOMAIN);
  expect(await roleOf({ ...VM, source: { libvirt: DOMAIN } }, null)).toBe('primary');
});

test('protected by its name: libvirt sees it run and refuses what would disturb, and the standby takes over', async () => {
  await waitFor('boot', BOOT_MS, () => libvirt.console(DOMAIN).includes('GUEST-READY'));
  const tap = await network.addTap();
  const plan = await makePlan(cleanup, ['--libvirt', DOMAIN, '--tap', `hostnet0=${tap}`, '--vnc', 'none']);
  const standby = await startPlan(cleanup, network, plan);
  const { agent: secondary, listen } = await startSecondary(cleanup, standby, ['--witness', 'none']);
  const client = cleanup.own(await StreamClient.connect(network));
  const primary = cleanup.own(
    await TestAgent.start('primary', ['--vm', VM_NAME, '--libvirt', DOMAIN, '--peer', listen]),
  );
  await primary.waitState('PROTECTED', PROTECT_MS);
  await moreCheckpoints(primary, 5);
  await waitFor('running domain', 30_000, async () =>
    (await libvirt.virsh('domstate', DOMAIN)).startsWith('running'),
  );
  // In a pause libvirt itself says no, because the domain doesn't run then.
  const refused = await waitFor('refusal by QEMU', 60_000, async () => {
    const said = await libvirt.virsh('snapshot-create-as', DOMAIN, 's1', '--disk-only').catch(String);
    return !said.includes('domain is not running') && said;
  });
  expect(refused).toMatch(/in use by block job: mirror/);
  await moreCheckpoints(primary, 2);

  const pid = libvirt.pid(DOMAIN);
  const killedAtMs = monotonicMs();
  process.kill(pid, 'SIGKILL');
  await secondary.waitState('RUNNING', 60_000);
  await client.waitAfter(killedAtMs + 1, 60_000);
  await checkDisks(network, 60_000);
  expect(client.check).toMatchObject({ gaps: 0, regressions: 0 });
  // libvirt doesn't start it again beside the one that has taken over.
  await waitFor('end of the domain', 30_000, async () =>
    (await libvirt.virsh('domstate', DOMAIN)).startsWith('shut off'),
  );
  expect(isAlive(pid)).toBe(false);
  expect(isAlive(standby.pid)).toBe(true);
});
