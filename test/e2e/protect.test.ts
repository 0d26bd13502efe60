/** `protect`, `unprotect` and `doctor VM` against two daemons on this host: what they leave in the configuration, and what they say. */
import { existsSync, readFileSync, statSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Examined } from '../../src/doctor/doctor.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import type { TestVm } from '../../src/testbed/vm.ts';
import { waitFor } from '../../src/testbed/wait.ts';
import { colo, type Ended } from './support/cli.ts';
import { runs, TestDaemon } from './support/daemon.ts';
import { freePort, type GuestOptions, startVm, waitBooted } from './support/protection.ts';

const GUEST: GuestOptions = { guest: 'baremetal', machine: 'pc', memoryMiB: 8, append: 'pages=4 span=1' };

let cleanup: Cleanup;
let primary: TestDaemon;
let standby: TestDaemon;
let vm: TestVm;
let twin: TestVm;
let peer: string;

beforeAll(async () => {
  cleanup = new Cleanup();
  vm = await startVm(cleanup, 'a', GUEST, false);
  twin = await startVm(cleanup, 'a-standby', GUEST, true);
  await waitBooted(vm, GUEST);
  peer = `127.0.0.1:${await freePort()}`;
  primary = cleanup.own(new TestDaemon('primary'));
  standby = cleanup.own(new TestDaemon('secondary'));
  await Promise.all([primary.start(), standby.start()]);
});
afterAll(() => cleanup.run());

function asked(...args: string[]): Promise<Ended> {
  return colo(...args, '--control', primary.controlPath);
}

function protect(...args: string[]): Promise<Ended> {
  return asked('protect', 'a', '--to', peer, ...args);
}

function fileOfA(): string | null {
  return existsSync(primary.vmFile('a')) ? readFileSync(primary.vmFile('a'), 'utf8') : null;
}

describe('what can’t work is said before anything is changed', () => {
  test('a standby that isn’t there: the very lines that its host needs', async () => {
    const { code, stderr } = await protect('--qmp', vm.qmpPath, '--listen', '127.0.0.1:7799');
    expect(code).toBe(69);
    expect(stderr).toMatch(/^colo-agent: a can't be protected, and nothing was changed; .*\nFAIL {2}peer /);
    const lines = `    [vm.a]\n    qmp = "${vm.qmpPath}"\n    listen = "${peer}"\n    peer = "127.0.0.1:7799"\n`;
    expect(stderr).toContain(lines);
    expect([fileOfA(), await primary.list()]).toEqual([null, []]);
  });

  test('with --no-wait it is waited for, and `unprotect` ends that; both may be said twice', async () => {
    for (let again = 0; again < 2; again++) {
      const { code, stdout } = await protect('--qmp', vm.qmpPath, '--no-wait');
      expect({ code, stdout }).toMatchObject({ code: 0, stdout: expect.stringContaining('a: ') });
    }
    const { agentPid } = await primary.waitVm('a', 'an agent', (it) => it.agentPid !== null);
    const { code, stdout } = await asked('unprotect', 'a', '--json');
    expect({ code, ...JSON.parse(stdout) }).toMatchObject({ code: 0, vm: 'a', file: primary.vmFile('a') });
    expect([fileOfA(), await primary.list(), runs(agentPid)]).toEqual([null, [], false]);
    expect(await asked('unprotect', 'a')).toMatchObject({ code: 0, stdout: 'a: not protected here\n' });
  });

  test('no QEMU, no keys, no QMP socket, no standby: each by its name', async () => {
    const nowhere = await protect('--qmp', '/nowhere', '--tls', '/nokeys', '--json');
    expect(nowhere.code).toBe(78);
    expect(JSON.parse(nowhere.stdout)).toMatchObject({
      outcome: 'refused',
      reason: expect.stringMatching(/^qmp: .*\/nowhere.*; keys: .*\/nokeys/),
    });
    expect(await protect()).toMatchObject({ code: 64, stderr: expect.stringContaining('--qmp SOCKET') });
    expect(await asked('protect', 'a')).toMatchObject({
      code: 64,
      stderr: expect.stringContaining('--to HOST'),
    });
    const strange = await protect('--qmp', vm.qmpPath, '--interval', '20', '--min-interval', '30');
    expect(strange).toMatchObject({
      code: 78,
      stderr: expect.stringContaining('is longer than --interval 20'),
    });
    expect([fileOfA(), await primary.list()]).toEqual([null, []]);
  });
});

describe('a VM whose standby is there', () => {
  beforeAll(async () => {
    standby.writeVm('a', [`qmp = "${twin.qmpPath}"`, `listen = "${peer}"`]);
    await standby.reload();
    await standby.waitVm('a', 'its standby', ({ reason }) => reason === 'waiting for a primary');
  });

  test('is protected when the command ends; said again, it is left alone', async () => {
    const { code, stdout, stderr } = await protect('--qmp', vm.qmpPath, '--interval', '200');
    expect({ code, stdout, stderr }).toEqual({
      code: 0,
      stdout: `a is PROTECTED, at ${peer}: the standby holds the last checkpoint\n`,
      stderr: '',
    });
    expect(fileOfA()).toMatch(/^# Written by `colo-agent protect`.*\n# Edit .*\n\n\[vm.a\]\n/);
    expect(fileOfA()).toContain(`\nqmp = "${vm.qmpPath}"\ninterval = 200\npeer = "${peer}"\n`);
    expect(statSync(primary.vmFile('a')).mode & 0o777).toBe(0o644);
    const before = await primary.vm('a');
    expect((await asked('protect', 'a')).code).toBe(0);
    expect(await primary.vm('a')).toEqual(before);
  });

  test('keeps what isn’t given, and takes what is', async () => {
    const { code, stdout } = await asked('protect', 'a', '--interval', '300', '--json');
    const states = stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line));
    expect({ code, last: states.at(-1) }).toMatchObject({
      code: 0,
      last: { vm: 'a', outcome: 'protected', state: 'PROTECTED', peer, file: primary.vmFile('a') },
    });
    expect(fileOfA()).toContain(`\nqmp = "${vm.qmpPath}"\ninterval = 300\npeer = "${peer}"\n`);
  });

  test('what fails later is taken back, and the VM protected as it was', async () => {
    const before = fileOfA();
    const { code, stderr } = await asked('protect', 'a', '--qmp', '/nowhere');
    expect({ code, stderr }).toMatchObject({
      code: 69,
      stderr: expect.stringMatching(
        /^colo-agent: a isn't protected: WAITING: .*\/nowhere.*a.toml is as it was\n$/s,
      ),
    });
    expect(fileOfA()).toBe(before);
    await primary.waitState('a', 'PROTECTED');
  });

  test('is looked at by the doctor with the options that it has in the configuration', async () => {
    const where = ['--config', primary.configFile];
    const one = JSON.parse((await asked('doctor', 'a', '--json', ...where)).stdout).checks as Examined[];
    const found = (name: string) => one.find((each) => each.name === name)?.found;
    expect(found('agent')).toContain("it is a's primary, PROTECTED");
    expect(found('peer')).toContain('127.0.0.1 accepts us');
    expect(found('qmp')).toContain('the agent that runs here has the monitor');
  });

  test('goes on when its protection ends', async () => {
    const { agentPid } = await primary.waitState('a', 'PROTECTED');
    expect(await asked('unprotect', 'a')).toMatchObject({
      code: 0,
      stdout: 'a: protection has ended; the VM keeps running\n',
    });
    expect([fileOfA(), await primary.list(), runs(agentPid)]).toEqual([null, [], false]);
    const letters = vm.console().length;
    await waitFor('more of the guest', 60_000, () => vm.console().length > letters + 1);
  });
});

describe('a VM that a person has written into the configuration', () => {
  test('stays as it is, and the place is named', async () => {
    primary.writeVm('a', [`qmp = "${vm.qmpPath}"`, `peer = "${peer}"`]);
    await primary.reload();
    const place = `VM a stands at ${primary.vmFile('a')}:1:2, which \`protect\` didn't write`;
    expect(await asked('protect', 'a', '--interval', '60')).toMatchObject({
      code: 78,
      stderr: expect.stringMatching(new RegExp(`${place}; .*\\n  interval = 60\\n`)),
    });
    expect(await asked('unprotect', 'a')).toMatchObject({ code: 78, stderr: expect.stringContaining(place) });
    // As it is written there it may be said.
    expect(await protect()).toMatchObject({ code: 0, stdout: expect.stringContaining('a is PROTECTED') });
  });

  test('stays stopped when it is changed, until somebody wants it', async () => {
    await asked('stop', 'a');
    await primary.waitState('a', 'STOPPED');
    primary.writeVm('a', [`qmp = "${vm.qmpPath}"`, `peer = "${peer}"`, 'interval = 60']);
    expect(await primary.reload()).toMatchObject({ changed: ['a'] });
    expect(await primary.reload()).toMatchObject({ unchanged: ['a'] });
    expect((await primary.vm('a')).state).toBe('STOPPED');
  });

  test('is looked at with what is given beside its options, too; `--all` looks at every one', async () => {
    const where = ['--config', primary.configFile];
    const other = await asked('doctor', 'a', ...where, '--peer', '127.0.0.1:1');
    expect(other).toMatchObject({
      code: 69,
      stdout: expect.stringMatching(/FAIL {2}peer .*127\.0\.0\.1:1\b/),
    });
    expect(await asked('doctor', 'b', ...where)).toMatchObject({
      code: 64,
      stderr: expect.stringContaining('it has a'),
    });
    const all = await asked('doctor', '--all', '--json', ...where);
    expect(JSON.parse(all.stdout).vms.map((each: { vm: string }) => each.vm)).toEqual(['a']);
  });

  test('begins again when `protect` says so', async () => {
    expect(await asked('protect', 'a')).toMatchObject({
      code: 0,
      stdout: expect.stringContaining('a is PROTECTED'),
    });
  });
});
