import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { answersAt } from '../../src/agent/socket-path.ts';
import { Endpoint } from '../../src/http/endpoint.ts';
import { MetricsServer } from '../../src/metrics/server.ts';

let folder: string;
let endpoint: Endpoint<MetricsServer>;
beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'colo-endpoint-'));
  const readings = () => new Map();
  endpoint = new Endpoint((address) => MetricsServer.listen({ address, version: '1', readings }));
});
afterEach(() => {
  endpoint.close();
  rmSync(folder, { recursive: true });
});

test('it moves to where it is told, and is at one place at a time', async () => {
  const [one, other] = [path.join(folder, 'one'), path.join(folder, 'other')];
  await endpoint.moveTo({ path: one });
  await endpoint.moveTo({ path: one });
  expect(await answersAt(one)).toBe(true);
  await endpoint.moveTo({ path: other });
  expect([await answersAt(one), await answersAt(other)]).toEqual([false, true]);
  await endpoint.moveTo(null);
  expect(await answersAt(other)).toBe(false);
});

test('where it can’t be had it stays where it was', async () => {
  const [mine, taken] = [path.join(folder, 'mine'), path.join(folder, 'taken')];
  const somebody = createServer().listen(taken);
  try {
    await endpoint.moveTo({ path: mine });
    await expect(endpoint.moveTo({ path: taken })).rejects.toThrow('somebody already listens there');
    expect(await answersAt(mine)).toBe(true);
  } finally {
    somebody.close();
  }
});

test('from one address of this host to all of them, at the same port', async () => {
  const port = await new Promise<number>((resolve) => {
    const probe = createServer().listen(0, '127.0.0.1', () => {
      const { port: free } = probe.address() as { port: number };
      probe.close(() => resolve(free));
    });
  });
  await endpoint.moveTo({ host: '127.0.0.1', port });
  await endpoint.moveTo({ host: '0.0.0.0', port });
});
