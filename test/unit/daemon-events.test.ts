import {
  appendFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { TakeOverRecord } from '../../src/agent/take-over-record.ts';
import { EventStore } from '../../src/daemon/event-store.ts';
import { ConfigError } from '../../src/daemon/toml.ts';

let folder: string;

beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'colo-events-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

const EVENT = {
  vm: 'web',
  role: 'primary',
  state: 'PROTECTED',
  reason: '',
  generation: 1,
  epoch: 7,
} as const;

const record = (vm: string, id: string): TakeOverRecord => ({
  id,
  vm,
  outcome: 'took-over',
  reason: 'took over',
  cause: 'silence',
  generation: 2,
  epoch: 7,
  beganAt: '2026-11-27T16:03:12.480Z',
  tookMs: 61.5,
  decidedBy: 'witness',
  steps: [],
});

test('events come in their order, by VM, and after the one that was seen last', () => {
  const store = new EventStore(null);
  for (const vm of ['web', 'db', 'web']) store.add({ ...EVENT, vm });
  expect(store.after(0, null, 10).map(({ id }) => id)).toEqual([1, 2, 3]);
  expect(store.after(1, 'web', 10)).toMatchObject([{ id: 3, vm: 'web', state: 'PROTECTED', epoch: 7 }]);
  expect(store.after(0, null, 2).map(({ id }) => id)).toEqual([1, 2]);
  expect(store.latest(0, 2).map(({ id }) => id)).toEqual([2, 3]);
  expect(store.latest(2, 2).map(({ id }) => id)).toEqual([3]);
});

test('they outlive the daemon, also one that died in the middle of a line', () => {
  const store = new EventStore(path.join(folder, 'state'));
  store.add(EVENT);
  store.add({ ...EVENT, state: 'EXPOSED' });
  appendFileSync(path.join(folder, 'state', 'events.jsonl'), '{"id":3,"ti');
  const next = new EventStore(path.join(folder, 'state'));
  expect(next.after(0, null, 10).map(({ id, state }) => `${id} ${state}`)).toEqual([
    '1 PROTECTED',
    '2 EXPOSED',
  ]);
  next.add({ ...EVENT, state: 'SYNCING' });
  const third = new EventStore(path.join(folder, 'state'));
  expect(third.after(2, null, 10)).toMatchObject([{ id: 3, state: 'SYNCING' }]);
});

test('a line that is no event is none', () => {
  writeFileSync(path.join(folder, 'events.jsonl'), '{"id":4,"vm":"web"}\n7\nnull\n{}\n');
  const store = new EventStore(folder);
  store.add(EVENT);
  expect(store.after(0, null, 10).map(({ id }) => id)).toEqual([4, 5]);
});

test('where they can’t be kept is said at once', () => {
  const file = path.join(folder, 'file');
  writeFileSync(file, '');
  expect(() => new EventStore(path.join(file, 'state'))).toThrow(
    /^what happens can't be kept in .*file\/state: ENOTDIR.*; give another `state-dir`/,
  );
  mkdirSync(path.join(folder, 'events.jsonl'));
  expect(() => new EventStore(folder)).toThrow(ConfigError);
});

test('take-overs outlive the daemon as events do', () => {
  const store = new EventStore(folder);
  for (const [vm, id] of [
    ['web', '1'],
    ['db', '2'],
    ['web', '3'],
  ] as const) {
    store.add(EVENT);
    store.add({ ...EVENT, vm, takeOver: record(vm, id) });
  }
  const ids = (vm: string | null) => new EventStore(folder).takeOvers(vm).map(({ id }) => id);
  expect(ids(null)).toEqual(['1', '2', '3']);
  expect(ids('web')).toEqual(['1', '3']);
  // Each comes after an event of its own: the second is the fourth.
  expect(new EventStore(folder).takeOvers(null, 4).map(({ id }) => id)).toEqual(['3']);
  expect(new EventStore(folder).takeOvers('db')).toEqual([record('db', '2')]);
});

test('what is kept is bounded, in memory and on disk', () => {
  const store = new EventStore(folder);
  for (let count = 0; count < 1500; count++) store.add({ ...EVENT, reason: 'x'.repeat(8000) });
  expect(store.after(0, null, 5000)).toHaveLength(1000);
  expect(readdirSync(folder).sort()).toEqual(['events.jsonl', 'events.jsonl.1']);
  const bytes = readdirSync(folder).map((name) => statSync(path.join(folder, name)).size);
  expect(Math.max(...bytes)).toBeLessThan(5 << 20);
});

test('of a VM that fails again and again the others’ take-overs and roles are not pushed out', () => {
  const store = new EventStore(folder);
  store.add({ ...EVENT, vm: 'db', role: 'secondary', takeOver: record('db', '1') });
  for (let count = 0; count < 1500; count++) store.add({ ...EVENT, role: null, state: 'WAITING' });
  for (const each of [store, new EventStore(folder)]) {
    expect(each.takeOvers('db')).toEqual([record('db', '1')]);
    expect(each.lastRole('db')).toBe('secondary');
    expect(each.lastRole('web')).toBeNull();
  }
});
