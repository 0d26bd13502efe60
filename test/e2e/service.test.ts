/** Both agents as services of Type=notify, with socat in systemd's place. */
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { TestAgent } from '../../src/testbed/agents.ts';
import { Child } from '../../src/testbed/child.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { waitFor } from '../../src/testbed/wait.ts';
import { type GuestOptions, PROTECT_MS, startVm, VM_NAME, waitBooted } from './support/protection.ts';

const GUEST: GuestOptions = { guest: 'baremetal' };
const TOLD_MS = 60_000;

let cleanup: Cleanup;
let folder: string;
beforeEach(() => {
  cleanup = new Cleanup();
  folder = mkdtempSync(path.join(tmpdir(), 'colo-service-'));
});
afterEach(async () => {
  await cleanup.run();
  rmSync(folder, { recursive: true });
});

/** A service manager, and what it was told so far. */
async function serviceManager(name: string): Promise<{ env: NodeJS.ProcessEnv; told: () => string }> {
  const socket = path.join(folder, name);
  const file = `${socket}.told`;
  const command = ['socat', '-u', `UNIX-RECV:${socket}`, `CREATE:${file}`];
  const child = await Child.start(command, { stderrPath: `${socket}.stderr` });
  cleanup.add(() => child.stop());
  await waitFor(`socat at ${socket}`, TOLD_MS, () => existsSync(socket) && existsSync(file));
  // 20 ms: many pings within the test's time.
  const env = { NOTIFY_SOCKET: socket, WATCHDOG_USEC: '20000' };
  return { env, told: () => readFileSync(file, 'utf8') };
}

test('they say when they are ready, that they live, and that they end', async () => {
  const primaryVm = await startVm(cleanup, 'primary', GUEST, false);
  await waitBooted(primaryVm, GUEST);
  const standbyVm = await startVm(cleanup, 'standby', GUEST, true);
  const options = (qmp: string) => ['--vm', VM_NAME, '--qmp', qmp];

  const south = await serviceManager('south');
  const standby = [...options(standbyVm.qmpPath), '--listen', '127.0.0.1:0'];
  const secondary = cleanup.own(await TestAgent.start('secondary', standby, south.env));
  await waitFor('READY of the secondary', TOLD_MS, () => south.told().includes('READY=1'));
  expect(south.told()).toContain(`READY=1\nSTATUS=secondary of VM ${VM_NAME}`);

  const north = await serviceManager('north');
  const { listen } = await secondary.status();
  const protecting = [...options(primaryVm.qmpPath), '--peer', String(listen)];
  const primary = cleanup.own(await TestAgent.start('primary', protecting, north.env));
  await primary.waitState('PROTECTED', PROTECT_MS);
  await waitFor('READY of the primary', TOLD_MS, () => north.told().includes('READY=1'));
  const before = north.told().split('WATCHDOG=1').length;
  await waitFor('pings', TOLD_MS, () => north.told().split('WATCHDOG=1').length > before + 3);

  primary.kill('SIGTERM');
  expect(await primary.exited).toMatchObject({ code: 0 });
  await waitFor('STOPPING of the primary', TOLD_MS, () => north.told().includes('STOPPING=1'));
  expect(south.told()).not.toContain('STOPPING=1');
});
