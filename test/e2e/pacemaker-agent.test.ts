/** The resource agent for Pacemaker, called as Pacemaker calls it: two daemons, a VM, an etcd. With a cluster that decides: `npm run test:pacemaker`. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { TestEtcd } from '../../src/testbed/etcd.ts';
import type { TestVm } from '../../src/testbed/vm.ts';
import { TestDaemon } from './support/daemon.ts';
import { AGENT, launcherIn, OCF, OcfInstance } from './support/ocf.ts';
import { freePort, type GuestOptions, startVm, waitBooted } from './support/protection.ts';
import { runsNow, waitRuns } from './support/run-state.ts';

const GUEST: GuestOptions = { guest: 'baremetal' };
const VM = 'web1';
const DTD = '/usr/share/resource-agents/ra-api-1.dtd';
const PROBE = { CRM_meta_interval: '0' };
/** For what is tried until the time is over: two seconds, after the agent's margin. */
const SHORT = { CRM_meta_timeout: '5000' };

let cleanup: Cleanup;
let folder: string;
let northVm: TestVm;
let southVm: TestVm;
let northDaemon: TestDaemon;
let southDaemon: TestDaemon;
let north: OcfInstance;
let south: OcfInstance;

beforeAll(async () => {
  cleanup = new Cleanup();
  folder = mkdtempSync(path.join(tmpdir(), 'colo-ocf-'));
  cleanup.own({ destroy: () => rmSync(folder, { recursive: true }) });
  const etcd = cleanup.own(await TestEtcd.start());
  northVm = await startVm(cleanup, 'north', GUEST, false);
  southVm = await startVm(cleanup, 'south', GUEST, true);
  await waitBooted(northVm, GUEST);
  northDaemon = cleanup.own(new TestDaemon('primary'));
  southDaemon = cleanup.own(new TestDaemon('secondary'));
  const ports = [await freePort(), await freePort()] as const;
  const common = [`witness = "${etcd.endpoints.join(',')}"`, 'peer-timeout = 1000'];
  write(northDaemon, northVm, 'north', ports, common);
  write(southDaemon, southVm, 'south', [ports[1], ports[0]], common);
  await southDaemon.start();
  await northDaemon.start();
  const parameters = { vm: VM, binary: launcherIn(folder), grace: '1' };
  north = new OcfInstance('dash', { ...parameters, control: northDaemon.controlPath });
  south = new OcfInstance('bash', { ...parameters, control: southDaemon.controlPath });
});
afterAll(() => cleanup.run());

/** `ports`: its own, and the other host's. */
function write(
  daemon: TestDaemon,
  vm: TestVm,
  node: string,
  [own, other]: readonly [number, number],
  common: readonly string[],
): void {
  const addresses = [`listen = "127.0.0.1:${own}"`, `peer = "127.0.0.1:${other}"`];
  daemon.writeVm(VM, [`qmp = "${vm.qmpPath}"`, `node = "${node}"`, ...addresses, ...common]);
}

/** What there is, whatever Pacemaker believes. */
async function roles(): Promise<(number | null)[]> {
  const probes = await Promise.all([north.run('monitor', PROBE), south.run('monitor', PROBE)]);
  return probes.map(({ code }) => code);
}

describe.concurrent('without a machine', () => {
  test('its description is what the schema asks for, and what it does', () => {
    const { stdout } = spawnSync('dash', [AGENT, 'meta-data'], { encoding: 'utf8' });
    // The distribution's schema is of OCF 1.0. OCF 1.1 has one action and one attribute more.
    const dtd = readFileSync(DTD, 'utf8')
      .replace('|reload|', '|reload|reload-agent|')
      .replace('unique  (1|0)', 'reloadable (1|0) "0"\n unique  (1|0)');
    const judged = spawnSync('xmllint', ['--noout', '--valid', '-'], {
      input: stdout.replace(
        /<!DOCTYPE.*>/,
        `<!DOCTYPE resource-agent [\n${dtd.replace(/<\?xml.*\?>/, '')}]>`,
      ),
      encoding: 'utf8',
    });
    expect(judged).toMatchObject({ status: 0, stderr: '' });
    const actions = [...stdout.matchAll(/<action name="([^"]+)"/g)].map(([, name]) => name);
    expect(new Set(actions)).toEqual(
      new Set([
        'start',
        'stop',
        'promote',
        'demote',
        'monitor',
        'notify',
        'validate-all',
        'reload-agent',
        'meta-data',
      ]),
    );
  });

  test('shellcheck has nothing to say', () => {
    const { status, stdout } = spawnSync('shellcheck', [AGENT], { encoding: 'utf8' });
    expect({ status, stdout }).toEqual({ status: 0, stdout: '' });
  });

  test('what it can’t do, and parameters that are wrong', async () => {
    expect(await north.run('migrate_to')).toMatchObject({ code: OCF.ERR_UNIMPLEMENTED });
    expect(await north.run('start', { vm: '' })).toMatchObject({
      code: OCF.ERR_CONFIGURED,
      stderr: expect.stringContaining('the parameter vm is missing'),
    });
    expect(await north.run('monitor', { grace: 'soon' })).toMatchObject({
      code: OCF.ERR_CONFIGURED,
      stderr: expect.stringContaining("not 'soon'"),
    });
  });

  test('no program: it can’t be started here, and it doesn’t run', async () => {
    const nowhere = { binary: path.join(folder, 'nothing') };
    expect(await north.run('start', nowhere)).toMatchObject({
      code: OCF.ERR_INSTALLED,
      stderr: expect.stringContaining('install colo-agent here'),
    });
    expect((await north.run('monitor', { ...nowhere, ...PROBE })).code).toBe(OCF.NOT_RUNNING);
    expect((await north.run('stop', nowhere)).code).toBe(OCF.SUCCESS);
  });

  test('no daemon: it doesn’t run, and a start waits for one', async () => {
    const nobody = { control: path.join(folder, 'nobody.sock'), ...SHORT };
    const [monitor, stop, start] = await Promise.all(
      ['monitor', 'stop', 'start'].map((action) => north.run(action, nobody)),
    );
    expect(monitor).toMatchObject({
      code: OCF.NOT_RUNNING,
      stderr: expect.stringContaining('no colo-agent answers at'),
    });
    expect(stop).toMatchObject({ code: OCF.SUCCESS });
    expect(start).toMatchObject({
      code: OCF.ERR_GENERIC,
      stderr: expect.stringContaining('no colo-agent answers at'),
    });
  });

  test('a machine that this host doesn’t know', async () => {
    const strange = { vm: 'web9' };
    expect(await north.run('start', strange)).toMatchObject({
      code: OCF.ERR_ARGS,
      stderr: expect.stringContaining('no VM `web9` here; there are: web1'),
    });
    expect((await north.run('validate-all', strange)).code).toBe(OCF.ERR_ARGS);
    expect((await north.run('monitor', { ...strange, ...PROBE })).code).toBe(OCF.NOT_RUNNING);
    expect((await north.run('stop', strange)).code).toBe(OCF.SUCCESS);
  });
});

describe('with a machine', () => {
  test('it says which host runs it and which stands by, and starts what runs', async () => {
    await northDaemon.waitState(VM, 'PROTECTED');
    await southDaemon.waitState(VM, 'STANDBY');
    expect(await roles()).toEqual([OCF.RUNNING_PROMOTED, OCF.SUCCESS]);
    for (const action of ['validate-all', 'start', 'notify', 'reload-agent']) {
      const answers = await Promise.all([north.run(action), south.run(action)]);
      expect(
        answers.map(({ code }) => code),
        action,
      ).toEqual([OCF.SUCCESS, OCF.SUCCESS]);
    }
  });

  test('a promotion is refused while the primary lives, and a demotion that nobody takes over', async () => {
    const demote = (taker: string) =>
      north.run('demote', { CRM_meta_on_node: 'north', CRM_meta_notify_promote_uname: taker });
    const [promotion, demotion, again] = await Promise.all([
      south.run('promote', SHORT),
      demote(' '),
      demote('north'),
    ]);
    expect(again).toMatchObject({ code: OCF.SUCCESS });
    expect(promotion).toMatchObject({
      code: OCF.ERR_GENERIC,
      stderr: expect.stringContaining('not promoted: colo-agent: failover refused: the primary is connected'),
    });
    expect(demotion).toMatchObject({
      code: OCF.ERR_GENERIC,
      stderr: expect.stringContaining('no other node is to be promoted'),
    });
    expect(await roles()).toEqual([OCF.RUNNING_PROMOTED, OCF.SUCCESS]);
    await waitRuns(northVm);
  });

  test('a demotion hands it over, and the promotion finds that done', async () => {
    const wanted = { CRM_meta_on_node: 'north', CRM_meta_notify_promote_uname: 'south' };
    expect(await north.run('demote', wanted)).toMatchObject({ code: OCF.SUCCESS });
    expect(await south.run('promote')).toMatchObject({ code: OCF.SUCCESS });
    expect(await north.run('demote')).toMatchObject({ code: OCF.SUCCESS });
    expect(await roles()).toEqual([OCF.SUCCESS, OCF.RUNNING_PROMOTED]);
    await waitRuns(southVm);
    expect(await runsNow(northVm)).toBe(false);
  });

  test('a standby that is stopped and started; without it nothing is handed over', async () => {
    await southDaemon.waitState(VM, 'PROTECTED');
    for (const _ of ['stop', 'already stopped'])
      expect(await north.run('stop')).toMatchObject({ code: OCF.SUCCESS });
    expect((await north.run('monitor')).code).toBe(OCF.NOT_RUNNING);
    await southDaemon.waitState(VM, 'EXPOSED');
    expect(await south.run('demote', SHORT)).toMatchObject({
      code: OCF.ERR_GENERIC,
      stderr: expect.stringContaining('not demoted: web1 is EXPOSED here'),
    });
    await waitRuns(southVm);
    expect(await north.run('start')).toMatchObject({ code: OCF.SUCCESS });
    expect((await north.run('monitor')).code).toBe(OCF.SUCCESS);
    await southDaemon.waitState(VM, 'PROTECTED');
  });

  test('a machine whose QEMU has died: its standby took it over, as the promotion finds', async () => {
    southVm.kill();
    await southVm.exited;
    expect(await north.run('promote')).toMatchObject({ code: OCF.SUCCESS });
    expect(await roles()).toEqual([OCF.RUNNING_PROMOTED, OCF.NOT_RUNNING]);
    await waitRuns(northVm);
    // To Pacemaker, which has not promoted it yet, that is no failure, which it would mend by a demotion.
    expect((await north.run('monitor', { CRM_meta_role: 'Unpromoted' })).code).toBe(OCF.SUCCESS);
    expect((await north.run('monitor', { CRM_meta_role: 'Promoted' })).code).toBe(OCF.RUNNING_PROMOTED);
  });

  test('the end of protection where nobody can take it over: it runs on; a start protects it again', async () => {
    expect(await north.run('stop')).toMatchObject({ code: OCF.SUCCESS });
    expect((await north.run('monitor')).code).toBe(OCF.NOT_RUNNING);
    await waitRuns(northVm);
    expect(await north.run('start')).toMatchObject({ code: OCF.SUCCESS });
    expect((await roles())[0]).toBe(OCF.RUNNING_PROMOTED);
  });

  test('an agent that only waits for its QEMU: nothing to demote or to start, and it rests after a stop', async () => {
    expect((await southDaemon.vm(VM)).state).toBe('WAITING');
    expect(await south.run('demote')).toMatchObject({ code: OCF.SUCCESS });
    expect(await south.run('start')).toMatchObject({
      code: OCF.ERR_GENERIC,
      stderr: expect.stringContaining(
        `not started: web1 is WAITING here: no answer at \`qmp\` ${southVm.qmpPath}`,
      ),
    });
    expect(await south.run('stop')).toMatchObject({ code: OCF.SUCCESS });
    expect((await southDaemon.vm(VM)).state).toBe('STOPPED');
  });
});
