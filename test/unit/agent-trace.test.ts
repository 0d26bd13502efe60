/** The trace's file and its ring. What a protection writes there is for test/e2e/trace.test.ts. */
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { monotonicMs } from '../../src/agent/driver.ts';
import { Log } from '../../src/agent/log.ts';
import { NO_EPOCH, Trace } from '../../src/agent/trace.ts';
import { TraceFile } from '../../src/agent/trace-file.ts';
import { parseTrace, type TraceEvent } from '../../src/testbed/trace.ts';

let folder: string;
let file: string;
let logged: { message: string; error?: string }[];
let log: Log;

beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'colo-trace-'));
  file = path.join(folder, 'trace.json');
  logged = [];
  log = new Log(
    'warn',
    () => ({}),
    (line) => logged.push(JSON.parse(line)),
  );
});
afterEach(() => rmSync(folder, { recursive: true }));

const STEPS = {
  stop: { track: 'QEMU' },
  copy: { track: 'capture', args: ['pages', 'bytes'] },
  state: { track: 'session' },
} as const;

function open(bytesMax?: number): Promise<Trace<typeof STEPS>> {
  return Trace.open(file, { processName: 'test', steps: STEPS, log, ...(bytesMax && { bytesMax }) });
}

const text = () => readFileSync(file, 'utf8');
const events = () => JSON.parse(text()) as TraceEvent[];
const steps = () => events().filter(({ ph }) => ph !== 'M');

describe('a trace', () => {
  test('is JSON, with its process, its tracks and its steps', async () => {
    const trace = await open();
    trace.spanUs('stop', 7, 1000.9, 2000.2);
    trace.spanUs('copy', 7, 2000.2, 2500.7, 12, 49152);
    trace.mark('state', NO_EPOCH, monotonicMs(), 'EXPOSED: "lost"\n');
    await trace.close();
    const ids = { pid: process.pid };
    expect(events().filter(({ ph }) => ph === 'M')).toMatchObject([
      { name: 'process_name', ...ids, args: { name: 'test' } },
      { name: 'thread_name', ...ids, tid: 1, args: { name: 'QEMU' } },
      { name: 'thread_sort_index', ...ids, tid: 1 },
      { name: 'thread_name', ...ids, tid: 2, args: { name: 'capture' } },
      { name: 'thread_sort_index', ...ids, tid: 2 },
      { name: 'thread_name', ...ids, tid: 3, args: { name: 'session' } },
      { name: 'thread_sort_index', ...ids, tid: 3 },
    ]);
    expect(steps()).toEqual([
      { ph: 'X', name: 'stop', ts: 1000, dur: 1000, ...ids, tid: 1, args: { epoch: 7 } },
      {
        ph: 'X',
        name: 'copy',
        ts: 2000,
        dur: 500,
        ...ids,
        tid: 2,
        args: { epoch: 7, pages: 12, bytes: 49152 },
      },
      {
        ph: 'i',
        s: 't',
        name: 'state',
        ts: expect.any(Number),
        ...ids,
        tid: 3,
        args: { detail: 'EXPOSED: "lost"\n' },
      },
    ]);
    expect(logged).toEqual([]);
  });

  test('tells times on CLOCK_MONOTONIC', async () => {
    const trace = await open();
    const beforeUs = Number(process.hrtime.bigint()) / 1000;
    trace.span('stop', 1, monotonicMs(), monotonicMs());
    const afterUs = Number(process.hrtime.bigint()) / 1000;
    await trace.close();
    const [step] = steps() as [TraceEvent];
    // The offset between the two clocks was taken between two readings of one of them.
    expect(step.ts).toBeGreaterThan(beforeUs - 100);
    expect(step.ts).toBeLessThan(afterUs + 100);
  });

  test('writes nothing between hold and letGo', async () => {
    const trace = await open();
    await written(/process_name/);
    const before = statSync(file).size;
    trace.hold();
    for (let epoch = 0; epoch < 1000; epoch += 1) trace.spanUs('stop', epoch, epoch, epoch + 1);
    const other = await Trace.open(path.join(folder, 'other'), { processName: 'other', steps: STEPS, log });
    other.spanUs('stop', 1, 1, 2);
    // When this one's turn has come, the other's would have, too.
    await expect.poll(() => readFileSync(path.join(folder, 'other'), 'utf8')).toMatch(/"stop"/);
    expect(statSync(file).size).toBe(before);
    trace.letGo();
    await written(/"epoch":999/);
    await Promise.all([trace.close(), other.close()]);
    expect(steps()).toHaveLength(1000);
  });

  test('drops what the ring has no room for, and says how much', async () => {
    const trace = await open();
    trace.hold();
    for (let epoch = 0; epoch < 10_000; epoch += 1) trace.spanUs('stop', epoch, epoch, epoch + 1);
    await trace.close();
    const kept = steps().filter(({ ph }) => ph === 'X');
    const dropped = steps().find(({ name }) => /dropped/.test(name));
    expect(dropped?.name).toBe(`${10_000 - kept.length} steps were dropped`);
    expect(kept.map(({ args }) => args['epoch'])).toEqual(kept.map((_, index) => index));
  });

  test('cut off anywhere it still has every event before the cut', async () => {
    const trace = await open();
    for (let epoch = 0; epoch < 20; epoch += 1) trace.spanUs('stop', epoch, epoch, epoch + 1);
    await trace.close();
    const whole = text();
    const all = events();
    expect(parseTrace(whole)).toEqual(all);
    for (let end = 2; end < whole.length; end += 1) {
      const kept = parseTrace(whole.slice(0, end));
      expect(kept).toEqual(all.slice(0, kept.length));
    }
  });

  test('ends at its limit, says so once, and is still whole', async () => {
    const trace = await open(50_000);
    for (let epoch = 0; epoch < 3000; epoch += 1) trace.spanUs('stop', epoch, epoch, epoch + 1);
    await expect.poll(() => logged.length).toBe(1);
    for (let epoch = 0; epoch < 3000; epoch += 1) trace.spanUs('stop', epoch, epoch, epoch + 1);
    await trace.close();
    expect(logged).toMatchObject([{ message: expect.stringMatching(/limit/) }]);
    expect(text().length).toBeLessThanOrEqual(50_000);
    expect(steps().length).toBeGreaterThan(0);
  });

  test('on a full disk ends, says so once, and does no harm', async () => {
    const trace = await Trace.open('/dev/full', { processName: 'test', steps: STEPS, log });
    for (let epoch = 0; epoch < 1000; epoch += 1) trace.spanUs('stop', epoch, epoch, epoch + 1);
    await expect.poll(() => logged.length).toBe(1);
    for (let epoch = 0; epoch < 1000; epoch += 1) trace.spanUs('stop', epoch, epoch, epoch + 1);
    await trace.close();
    expect(logged).toMatchObject([
      { message: expect.stringMatching(/trace ends/), error: expect.stringMatching(/ENOSPC/) },
    ]);
  });

  test('that cannot be made is an error', async () => {
    file = path.join(folder, 'no', 'such', 'folder');
    await expect(open()).rejects.toMatchObject({ code: 'ENOENT' });
  });
});

describe('the file of a trace', () => {
  test('takes one write at a time', async () => {
    const trace = await TraceFile.open(file, log);
    trace.append(['{}']);
    expect(trace.busy).toBe(true);
    expect(() => trace.append(['{}'])).toThrow(/in progress/);
    await trace.written();
    trace.append(['{}']);
    await trace.close();
    expect(JSON.parse(text())).toEqual([{}, {}]);
    trace.append(['{}']);
    expect(trace.ended && !trace.busy).toBe(true);
  });

  test('without an event is an empty list', async () => {
    await (await TraceFile.open(file, log)).close();
    expect(JSON.parse(text())).toEqual([]);
  });
});

async function written(pattern: RegExp): Promise<void> {
  await expect.poll(text).toMatch(pattern);
}
