import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { HostWatchdog, watchedBy } from '../../src/agent/host-watchdog.ts';
import { Log } from '../../src/agent/log.ts';
import { native, type Watchdog } from '../../src/native/binding.ts';

/** What a device was told, in order. */
class FakeDevice implements Watchdog {
  readonly timeoutS = 10;
  readonly identity = 'Fake Dog';
  readonly told: string[] = [];
  broken = false;

  feed(): void {
    if (this.broken) throw new Error('Input/output error');
    this.told.push('feed');
  }
  disarm(): void {
    this.told.push('disarm');
  }
  close(): void {
    this.told.push('close');
  }
}

const lines: string[] = [];
const log = new Log(
  'debug',
  () => ({}),
  (line) => lines.push(line),
);
let device: FakeDevice;
beforeEach(() => {
  vi.useFakeTimers();
  lines.length = 0;
  device = new FakeDevice();
});
afterEach(() => vi.useRealTimers());

test('is fed five times within its time-out, by the event loop', () => {
  const watchdog = new HostWatchdog(device, log);
  vi.advanceTimersByTime(10_000);
  expect(device.told).toEqual(Array(5).fill('feed'));
  watchdog.disarm();
  vi.advanceTimersByTime(60_000);
  expect(device.told.slice(5)).toEqual(['disarm', 'close']);
});

test('is disarmed after an orderly end', async () => {
  expect(await watchedBy(new HostWatchdog(device, log), async () => 'stopped')).toBe('stopped');
  expect(device.told).toEqual(['disarm', 'close']);
});

test('stays armed after an end by an error, and is fed no more', async () => {
  const failing = watchedBy(new HostWatchdog(device, log), async () => {
    throw new Error('a mistake of ours');
  });
  await expect(failing).rejects.toThrow('a mistake of ours');
  vi.advanceTimersByTime(60_000);
  expect(device.told).toEqual(['close']);
  expect(lines.at(-1)).toContain('stays armed: this host will be reset');
});

test('a device that cannot be fed is said once, until it can', () => {
  const watchdog = new HostWatchdog(device, log);
  const said = () => lines.filter((line) => line.includes('could not be fed')).length;
  device.broken = true;
  vi.advanceTimersByTime(6000);
  expect(said()).toBe(1);
  device.broken = false;
  vi.advanceTimersByTime(2000);
  device.broken = true;
  vi.advanceTimersByTime(2000);
  expect(said()).toBe(2);
  watchdog.disarm();
});

test('what is no watchdog is refused', () => {
  const refused = expect.objectContaining({ code: 'ERR_COLO_WATCHDOG' });
  expect(() => HostWatchdog.arm('/dev/null', 10, log)).toThrow(refused);
  expect(() => new native.Watchdog('/dev/null', 10)).toThrow('/dev/null is no watchdog');
});
