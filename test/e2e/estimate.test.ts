/** `colo-agent estimate`: what it forecasts is what protection then costs, and QEMU is left as it was, whatever happens. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { Estimate } from '../../src/agent/estimate.ts';
import type { IntervalForecast } from '../../src/agent/forecast.ts';
import { QmpClient } from '../../src/qmp/client.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { TestNetwork } from '../../src/testbed/network.ts';
import type { TestVm } from '../../src/testbed/vm.ts';
import { waitFor } from '../../src/testbed/wait.ts';
import { colo, MAIN } from './support/cli.ts';
import {
  type GuestOptions,
  moreCheckpoints,
  protect,
  startPrimary,
  startSecondary,
  startVm,
  waitBooted,
} from './support/protection.ts';

const IDLE: GuestOptions = { guest: 'baremetal' };
/** 2,000 pages, of which nearly all are written within 100 ms, also when the guest gets half of the processor. */
const LOADED: GuestOptions = { guest: 'linux', append: 'colo.dirty=500,10' };
/** What is forecast and what protection costs are at most so far apart. */
const FACTOR = 2;

let cleanup: Cleanup;
beforeEach(() => {
  cleanup = new Cleanup();
});
afterEach(() => cleanup.run());

const estimate = (qmpPath: string, ...args: string[]) => colo('estimate', '--qmp', qmpPath, ...args);

async function forecastOf(qmpPath: string, ...args: string[]): Promise<Estimate> {
  const ended = await estimate(qmpPath, '--json', ...args);
  expect(ended).toMatchObject({ code: 0, stderr: '' });
  return JSON.parse(ended.stdout);
}

function isWatched(pid: number): boolean {
  return /^VmFlags:.* u[wm]( |$)/m.test(readFileSync(`/proc/${pid}/smaps`, 'utf8'));
}

function descriptors(pid: number): string[] {
  const folder = `/proc/${pid}/fd`;
  return readdirSync(folder)
    .map((fd) => `${fd} -> ${readlinkSync(path.join(folder, fd))}`)
    .sort();
}

/** Sees the VM from the test's own monitor, from before an estimate until after it. */
class Observed {
  readonly events: string[] = [];
  readonly #vm: TestVm;
  readonly #qmp: QmpClient;
  #before: unknown;

  private constructor(vm: TestVm, qmp: QmpClient) {
    this.#vm = vm;
    this.#qmp = qmp;
    for (const name of ['STOP', 'RESUME'] as const) qmp.onEvent(name, () => this.events.push(name));
  }

  static async begin(vm: TestVm): Promise<Observed> {
    const qmp = await QmpClient.connect(vm.testQmpPath);
    cleanup.add(() => qmp.close());
    const observed = new Observed(vm, qmp);
    observed.#before = await observed.#look();
    return observed;
  }

  /** QEMU closes its end of a monitor a moment after ours. */
  async expectUnchanged(): Promise<void> {
    await expect.poll(() => this.#look(), { timeout: 10_000 }).toEqual(this.#before);
  }

  async #look(): Promise<unknown> {
    const named = await this.#qmp.executeAll([
      ['query-status'],
      ['query-fdsets'],
      ['query-chardev'],
      ['query-jobs'],
      ['query-named-block-nodes', { flat: true }],
      ['qom-list', { path: '/objects' }],
    ]);
    return { named, watched: isWatched(this.#vm.pid), descriptors: descriptors(this.#vm.pid) };
  }
}

async function boot(guest: GuestOptions): Promise<TestVm> {
  const vm = await startVm(cleanup, 'primary', guest, false);
  await waitBooted(vm, guest);
  return vm;
}

function expectNear(forecast: number, real: number): void {
  expect(forecast).toBeGreaterThan(real / FACTOR);
  expect(forecast).toBeLessThan(real * FACTOR);
}

describe('a guest with a known load', () => {
  test.each([true, false])(
    'is forecast without stopping it, and costs that when it is protected (shared RAM: %s)',
    async (sharedRam) => {
      const guest = { ...LOADED, sharedRam };
      const vm = await boot(guest);
      const observed = await Observed.begin(vm);
      const found = await forecastOf(vm.qmpPath, '--seconds', '4', '--interval', '100', '--interval', '25');
      await observed.expectUnchanged();
      expect(observed.events).toEqual([]);

      expect(found).toMatchObject({ qemuPid: vm.pid, problems: [], pausedMeanwhile: false });
      const [short, long] = found.intervals as [IntervalForecast, IntervalForecast];
      expect([short.intervalMs, long.intervalMs]).toEqual([25, 100]);
      expect(short.windows).toBeGreaterThan(long.windows);
      expect(short.dirtyPages.p50).toBeLessThan(long.dirtyPages.p50);
      expect(long.bytesPerDirtyPage).toBeLessThan(1024);
      expect(long.pauseMs.p50).toBeGreaterThan(found.fixed.pauseMs);

      const real = await costOfProtection(vm, guest);
      expectNear(long.dirtyPages.p50, real.dirtyPages);
      expectNear(long.wireBytes.total, real.wireBytes);
    },
  );
});

/** Of a checkpoint every 100 ms: without a NIC there is no output that would ask for one sooner. */
async function costOfProtection(
  vm: TestVm,
  guest: GuestOptions,
): Promise<{ dirtyPages: number; wireBytes: number }> {
  const standby = await startVm(cleanup, 'standby', guest, true);
  const { listen } = await startSecondary(cleanup, standby);
  const primary = await startPrimary(cleanup, vm, listen, ['--interval', '100']);
  const before = await moreCheckpoints(primary, 5);
  const after = await moreCheckpoints(primary, 30);
  const { p50 } = after['dirtyPages'] as { p50: number };
  const sent = Number(after['sentBytes']) - Number(before['sentBytes']);
  return { dirtyPages: p50, wireBytes: sent / (after.epoch - before.epoch) };
}

describe('an estimate', () => {
  test('that is killed in the middle leaves QEMU as it was', async () => {
    const vm = await boot(IDLE);
    const observed = await Observed.begin(vm);
    for (const signal of ['SIGKILL', 'SIGTERM'] as const) {
      const child = spawn(process.execPath, [MAIN, 'estimate', '--qmp', vm.qmpPath, '--seconds', '600']);
      const ended = once(child, 'exit');
      await waitFor('watch', 30_000, () => isWatched(vm.pid));
      child.kill(signal);
      const [code] = await ended;
      expect(code).toBe(signal === 'SIGKILL' ? null : 69);
      await observed.expectUnchanged();
    }
    expect(observed.events).toEqual([]);
    await forecastOf(vm.qmpPath, '--seconds', '1', '--interval', '50');
  });

  test('stops the guest when it is asked to measure the floor, and then only once', async () => {
    const vm = await boot(IDLE);
    const observed = await Observed.begin(vm);
    const found = await forecastOf(vm.qmpPath, '--seconds', '1', '--interval', '50', '--measure-floor');
    expect(found.fixed.source).toBe('measured');
    expect(found.fixed.pauseMs).toBeGreaterThan(0);
    expect(found.fixed.vmstateBytes).toBeGreaterThan(1000);
    await observed.expectUnchanged();
    expect(observed.events).toEqual(['STOP', 'RESUME']);
  });

  test('prints a table, and what it assumed', async () => {
    const vm = await boot(IDLE);
    const { code, stdout } = await estimate(vm.qmpPath, '--seconds', '1', '--interval', '50');
    expect(code).toBe(0);
    expect(stdout).toMatch(
      /the guest was not stopped\n\n.*interval.*\n +50 ms .*\n\nAssumed: .*--measure-floor/,
    );
  });
});

describe('is refused', () => {
  test.each([
    ['without a NIC', false, /somebody else tracks the memory.*`colo-agent status`/],
    ['behind its gate', true, /protected already.*`colo-agent status`/],
  ])('for a VM that is protected, %s', async (_, gated, text) => {
    const network = gated ? cleanup.own(await TestNetwork.create()) : null;
    const { primaryVm, primary } = await protect(cleanup, {
      guest: { ...IDLE, ...(network && { network }) },
    });
    const refused = await estimate(primaryVm.testQmpPath);
    expect(refused).toMatchObject({ code: 69, stdout: '' });
    expect(refused.stderr).toMatch(text);
    await moreCheckpoints(primary, 3);
  });

  test('to stop a VM that could not be protected', async () => {
    const vm = await boot({ ...IDLE, disks: [{ id: 'd0', sizeMiB: 16, bus: 'ide' }] });
    const observed = await Observed.begin(vm);
    const refused = await estimate(vm.qmpPath, '--seconds', '1', '--interval', '50', '--measure-floor');
    expect(refused.code).toBe(69);
    expect(refused.stderr).toMatch(/can't be protected as it is: .*IDE.*Leave --measure-floor out/);
    expect(observed.events).toEqual([]);
    await forecastOf(vm.qmpPath, '--seconds', '1', '--interval', '50');
  });

  test('for a VM that another one watches', async () => {
    const vm = await boot(IDLE);
    const first = forecastOf(vm.qmpPath, '--seconds', '4', '--interval', '50');
    await waitFor('watch', 30_000, () => isWatched(vm.pid));
    expect((await estimate(vm.testQmpPath)).stderr).toMatch(/somebody else tracks the memory/);
    await first;
  });

  test('for a VM that ends meanwhile', async () => {
    const vm = await boot(IDLE);
    const watching = estimate(vm.qmpPath, '--seconds', '600');
    await waitFor('watch', 30_000, () => isWatched(vm.pid));
    vm.kill();
    expect(await watching).toMatchObject({ code: 69, stderr: expect.stringMatching(/QEMU has ended/) });
  });

  test('for a VM that stands', async () => {
    const vm = await startVm(cleanup, 'paused', IDLE, true);
    const refused = await estimate(vm.qmpPath);
    expect(refused.code).toBe(69);
    expect(refused.stderr).toMatch(/this VM is prelaunch/);
  });

  test.each<[string, string[], number, RegExp]>([
    ['no QMP socket', ['--qmp', '/nonexistent/qmp'], 69, /\/nonexistent\/qmp/],
    ['too short', ['--qmp', 'x', '--seconds', '1'], 64, /--seconds 1 is too short.*give at least 3/],
    ['no number', ['--qmp', 'x', '--interval', 'often'], 64, /whole number/],
    ['an interval out of range', ['--qmp', 'x', '--interval', '1'], 64, /from 5 to/],
    ['an unknown option', ['--qmp', 'x', '--fast'], 64, /unknown option/],
  ])('with %s', async (_name, [, qmp = '', ...args], code, text) => {
    const refused = await estimate(qmp, ...args);
    expect(refused.code).toBe(code);
    expect(refused.stderr).toMatch(text);
    expect(refused.stderr).not.toMatch(/\n\s+at /);
  });
});
