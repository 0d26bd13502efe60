/** What systemd is told, on a real datagram socket at whose other end stands socat; and what the journal is. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { closeSync, existsSync, fstatSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { goesToJournal } from '../../src/agent/journal.ts';
import { Log } from '../../src/agent/log.ts';
import { ServiceManager, takeServiceManagerPlace } from '../../src/agent/systemd.ts';

const lines: string[] = [];
const log = new Log(
  'debug',
  () => ({}),
  (line) => lines.push(line),
);

let folder: string;
let socket: string;
let manager: ChildProcess | undefined;
beforeEach(() => {
  lines.length = 0;
  folder = mkdtempSync(path.join(tmpdir(), 'colo-systemd-'));
  socket = path.join(folder, 'notify');
});
afterEach(() => {
  manager?.kill();
  manager = undefined;
  rmSync(folder, { recursive: true });
});

/** Everything that came so far. */
function told(): string {
  return readFileSync(path.join(folder, 'told'), 'utf8');
}

async function listen(): Promise<void> {
  const file = path.join(folder, 'told');
  manager = spawn('socat', ['-u', `UNIX-RECV:${socket}`, `CREATE:${file}`], { stdio: 'inherit' });
  await vi.waitFor(() => expect(existsSync(socket) && existsSync(file)).toBe(true), { timeout: 20_000 });
}

describe('the service manager', () => {
  test('hears that the service is ready, what it does, and that it ends; a status is one line', async () => {
    await listen();
    const service = new ServiceManager({ socket, watchdogUs: null }, log);
    service.ready('two VMs');
    service.status('one VM\nMAINPID=1');
    service.reloading();
    service.stopping('in good order');
    service.close();
    await vi.waitFor(() => expect(told()).toContain('STOPPING=1'), { timeout: 20_000 });
    expect(told()).toMatch(
      /^READY=1\nSTATUS=two VMsSTATUS=one VM MAINPID=1RELOADING=1\nMONOTONIC_USEC=\d+STOPPING=1\nSTATUS=in good order$/,
    );
    expect(lines).toEqual([]);
  });

  test('is pinged by the event loop, and not while that stands still', async () => {
    await listen();
    const pings = () => told().split('WATCHDOG=1').length - 1;
    const service = new ServiceManager({ socket, watchdogUs: 20_000 }, log);
    await vi.waitFor(() => expect(pings()).toBeGreaterThan(3), { timeout: 20_000 });
    // What was sent before may still be on its way.
    let before = pings();
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 500);
    before = pings();
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 500);
    expect(pings()).toBe(before);
    await vi.waitFor(() => expect(pings()).toBeGreaterThan(before), { timeout: 20_000 });
    service.close();
  });

  test('that is gone is told about once, and stops nothing', async () => {
    const service = new ServiceManager({ socket, watchdogUs: 1000 }, log);
    service.ready('alone');
    await sleep(20);
    service.close();
    expect(lines).toHaveLength(1);
    expect(lines[0]).toContain(`can't notify the service manager at ${socket}`);
  });

  test('is no matter of child processes, and its watchdog not of a process that it does not mean', () => {
    const env = { NOTIFY_SOCKET: '@x', WATCHDOG_USEC: '3000000', WATCHDOG_PID: '7', PATH: '/bin' };
    expect(takeServiceManagerPlace({ ...env }, 7)).toEqual({ socket: '@x', watchdogUs: 3_000_000 });
    expect(takeServiceManagerPlace({ ...env }, 8)).toEqual({ socket: '@x', watchdogUs: null });
    expect(takeServiceManagerPlace({ ...env, WATCHDOG_USEC: '0' }, 7)?.watchdogUs).toBeNull();
    expect(takeServiceManagerPlace({ ...env, WATCHDOG_USEC: '1e9' }, 7)?.watchdogUs).toBeNull();
    expect(takeServiceManagerPlace({ ...env, NOTIFY_SOCKET: '' }, 7)).toBeNull();
    takeServiceManagerPlace(env, 7);
    expect(env).toEqual({ PATH: '/bin' });
  });
});

describe('the journal', () => {
  test('is known by device and inode, not by a variable that was inherited', () => {
    const file = path.join(folder, 'journal');
    const fd = openSync(file, 'w');
    const stat = spawnSync('stat', ['-c', '%d:%i', file], { encoding: 'utf8' }).stdout.trim();
    expect(goesToJournal(fd, { JOURNAL_STREAM: stat })).toBe(true);
    expect(goesToJournal(fd, { JOURNAL_STREAM: `${stat}0` })).toBe(false);
    expect(goesToJournal(fd, {})).toBe(false);
    closeSync(fd);
    expect(goesToJournal(fd, { JOURNAL_STREAM: stat })).toBe(false);
  });

  test.each([
    ['error', 3],
    ['warn', 4],
    ['info', 6],
    ['debug', 7],
  ] as const)('gets %s as priority %i, and a terminal plain JSON', async (level, priority) => {
    const { dev, ino } = fstatSync(2, { bigint: true });
    const write = vi.spyOn(process.stderr, 'write').mockReturnValue(true);
    for (const stream of [`${dev}:${ino}`, '1:1']) {
      vi.stubEnv('JOURNAL_STREAM', stream);
      vi.resetModules(); // where standard error goes is looked at once a process
      const { Log: FreshLog } = await import('../../src/agent/log.ts');
      new FreshLog('debug', () => ({}))[level]('text');
    }
    const [forJournal, plain] = write.mock.calls.map(([text]) => String(text));
    write.mockRestore();
    vi.unstubAllEnvs();
    expect(forJournal).toMatch(new RegExp(`^<${priority}>\\{.*"level":"${level}".*\\}\\n$`));
    expect(plain).toMatch(/^\{/);
  });
});
