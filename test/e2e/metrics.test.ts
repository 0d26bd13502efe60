/** `--metrics` of two real agents: what is scraped is what `status --json` says, before a failover and after it. */
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Histogram } from '../../src/agent/durations.ts';
import type { PrimaryStatus, ProcessStatus, SecondaryStatus, Status } from '../../src/agent/status.ts';
import type { TestAgent } from '../../src/testbed/agents.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { TestNetwork } from '../../src/testbed/network.ts';
import { ask, type Where } from '../support/http.ts';
import { type ParsedFamily, parseOpenMetrics } from '../support/openmetrics.ts';
import { promtool } from '../support/promtool.ts';
import { colo } from './support/cli.ts';
import {
  freePort,
  moreCheckpoints,
  PROTECT_MS,
  type Protection,
  protect,
  VM_NAME,
} from './support/protection.ts';

const cleanup = new Cleanup();
const folder = mkdtempSync(path.join(tmpdir(), 'colo-metrics-'));
cleanup.add(() => rmSync(folder, { recursive: true }));
afterAll(() => cleanup.run());

/** The series of the one VM. */
class Scrape {
  readonly #families: Map<string, ParsedFamily>;

  private constructor(families: Map<string, ParsedFamily>) {
    this.#families = families;
  }

  static async of(where: Where): Promise<Scrape> {
    const { code, body } = await ask(where, '/metrics', {
      accept: 'application/openmetrics-text; version=1.0.0',
    });
    expect(code).toBe(200);
    return new Scrape(parseOpenMetrics(body));
  }

  value(name: string, labels: Record<string, string> = {}): number {
    const wanted = Object.entries({ vm: VM_NAME, ...labels });
    const found = [...this.#families.values()]
      .flatMap(({ samples }) => samples)
      .filter(
        (sample) =>
          sample.name === `colo_agent_${name}` &&
          wanted.every(([label, word]) => sample.labels.get(label) === word),
      );
    expect(found, name).toHaveLength(1);
    return found[0]?.value as number;
  }

  /** How many were at most as long as each bound. */
  buckets(name: string): number[] {
    const samples = this.#families.get(`colo_agent_${name}`)?.samples ?? [];
    return samples.filter((sample) => sample.name.endsWith('_bucket')).map(({ value }) => value);
  }
}

function cumulated({ counts }: Histogram): number[] {
  let sum = 0;
  return counts.map((count) => {
    sum += count;
    return sum;
  });
}

interface Looked<S extends Status> {
  before: S;
  scrape: Scrape;
  after: S;
}

/** A scrape, and what the agent said just before and just after. */
async function look<S extends Status>(agent: TestAgent, where: Where): Promise<Looked<S>> {
  const before = (await agent.status()) as unknown as S;
  const scrape = await Scrape.of(where);
  return { before, scrape, after: (await agent.status()) as unknown as S };
}

function expectBetween<S extends Status>(
  { before, scrape, after }: Looked<S>,
  name: string,
  of: (status: S) => number,
): void {
  expect(scrape.value(name), name).toBeGreaterThanOrEqual(of(before));
  expect(scrape.value(name), name).toBeLessThanOrEqual(of(after));
}

function expectHistogram<S extends Status>(
  { before, scrape, after }: Looked<S>,
  name: string,
  of: (status: S) => Histogram,
): void {
  const [least, most] = [cumulated(of(before)), cumulated(of(after))];
  const buckets = scrape.buckets(name);
  expect(buckets, name).toHaveLength(least.length);
  buckets.forEach((count, place) => {
    expect(count, name).toBeGreaterThanOrEqual(least[place] as number);
    expect(count, name).toBeLessThanOrEqual(most[place] as number);
  });
  expect(scrape.value(`${name}_sum`)).toBeGreaterThanOrEqual(of(before).sumMs / 1000);
  expect(scrape.value(`${name}_sum`)).toBeLessThanOrEqual(of(after).sumMs / 1000);
}

describe('a protection whose standby takes over', () => {
  const primaryAt = { socketPath: path.join(folder, 'primary.sock') };
  let secondaryAt: { host: string; port: number };
  let parts: Protection;

  beforeAll(async () => {
    const network = cleanup.own(await TestNetwork.create());
    secondaryAt = { host: '127.0.0.1', port: await freePort() };
    parts = await protect(cleanup, {
      guest: { guest: 'linux', network, append: 'colo.services=announce colo.dirty=300,20' },
      primaryArgs: ['--witness', 'none', '--metrics', `unix:${primaryAt.socketPath}`],
      // After its take-over it goes on as a primary, which finds no standby.
      secondaryArgs: [
        ...['--witness', 'none', '--peer', `127.0.0.1:${await freePort()}`],
        ...['--metrics', `${secondaryAt.port}`],
      ],
    });
    await moreCheckpoints(parts.primary, 10);
  });

  test('promtool has nothing to say against what either is scraped', async () => {
    for (const where of [primaryAt, secondaryAt]) {
      const { code, body } = await ask(where, '/metrics');
      expect(code).toBe(200);
      expect(promtool(['check', 'metrics'], body)).toEqual({ code: 0, output: '' });
    }
  });

  test('the primary’s figures are those of its status', async () => {
    const looked = await look<PrimaryStatus & ProcessStatus>(parts.primary, primaryAt);
    const { scrape, before } = looked;
    expect(scrape.value('up')).toBe(1);
    expect(scrape.value('role', { role: 'primary' })).toBe(1);
    expect(scrape.value('state', { state: 'PROTECTED' })).toBe(1);
    expect(scrape.value('tracker', { tracker: `${before.tracker}` })).toBe(1);
    expect(scrape.value('generation')).toBe(before.generation);
    expect(scrape.value('link_up')).toBe(1);
    expect(scrape.value('peer_certificate_expiry_timestamp_seconds')).toBeGreaterThan(Date.now() / 1000);
    expectBetween(looked, 'epoch', ({ epoch }) => epoch);
    expectBetween(looked, 'checkpoints_total', ({ checkpoints }) => checkpoints);
    expectBetween(looked, 'sent_bytes_total', ({ sentBytes }) => sentBytes);
    expectBetween(looked, 'dirty_pages_total', ({ dirtyPages }) => dirtyPages.total);
    expectBetween(looked, 'checkpoint_raw_bytes_total', ({ checkpointBytes }) => checkpointBytes.raw);
    expectBetween(looked, 'heartbeats_sent_total', ({ heartbeat }) => heartbeat?.sent ?? -1);
    expectHistogram(looked, 'pause_duration_seconds', ({ histograms }) => histograms.pause);
    expectHistogram(looked, 'checkpoint_duration_seconds', ({ histograms }) => histograms.checkpoint);
    expect(scrape.value('checkpoint_duration_seconds_count')).toBe(scrape.value('checkpoints_total'));
    expect(before.histograms.pause.sumMs).toBeCloseTo(before.pauseTotalMs, 2);
    expect(scrape.value('failover_duration_seconds_count')).toBe(0);
  });

  test('the secondary’s, too', async () => {
    const looked = await look<SecondaryStatus & ProcessStatus>(parts.secondary, secondaryAt);
    const { scrape } = looked;
    expect(scrape.value('role', { role: 'secondary' })).toBe(1);
    expect(scrape.value('state', { state: 'STANDBY' })).toBe(1);
    expectBetween(looked, 'checkpoints_total', ({ checkpoints }) => checkpoints);
    expectBetween(looked, 'received_bytes_total', ({ receivedBytes }) => receivedBytes);
    expectHistogram(looked, 'flush_duration_seconds', ({ histograms }) => histograms.flush);
    expectHistogram(looked, 'load_duration_seconds', ({ histograms }) => histograms.load);
    expect(scrape.value('load_duration_seconds_count')).toBe(scrape.value('checkpoints_total'));
  });

  test('both are healthy', async () => {
    for (const [where, state] of [
      [primaryAt, 'PROTECTED'],
      [secondaryAt, 'STANDBY'],
    ] as const) {
      const { code, body } = await ask(where, '/health');
      expect(JSON.parse(body)).toMatchObject({ healthy: true, vms: [{ vm: VM_NAME, state }] });
      expect(code).toBe(200);
    }
  });

  test('the failover is counted, also when its agent has become a primary, which isn’t healthy alone', async () => {
    parts.primaryVm.kill();
    parts.primary.kill();
    const status = (await parts.secondary.waitStatus(
      'the primary that it becomes',
      PROTECT_MS,
      ({ role, state }) => role === 'primary' && state === 'EXPOSED',
    )) as unknown as PrimaryStatus & ProcessStatus;
    const scrape = await Scrape.of(secondaryAt);
    expect(scrape.value('role', { role: 'primary' })).toBe(1);
    expect(scrape.value('state', { state: 'EXPOSED' })).toBe(1);
    expect(scrape.value('failover_duration_seconds_count')).toBe(1);
    expect(scrape.value('failover_duration_seconds_sum')).toBe(status.takeOvers.sumMs / 1000);
    expect(scrape.value('failover_duration_seconds_sum')).toBeGreaterThan(0);
    expect(scrape.buckets('failover_duration_seconds')).toEqual(cumulated(status.takeOvers));
    const { code, body } = await ask(secondaryAt, '/health');
    expect(code).toBe(503);
    expect(JSON.parse(body)).toMatchObject({
      healthy: false,
      vms: [{ vm: VM_NAME, healthy: false, role: 'primary', state: 'EXPOSED', reason: expect.any(String) }],
    });
  });
});

test('an address that is taken is found out before anything else', async () => {
  const taken = path.join(folder, 'taken');
  const owner = createServer().listen(taken);
  cleanup.add(() => {
    owner.close();
  });
  const args = ['--vm', VM_NAME, '--qmp', '/no/such/socket', '--peer', '127.0.0.1:1', '--insecure'];
  const { code, stderr } = await colo('primary', ...args, '--metrics', `unix:${taken}`);
  expect(stderr).toContain(`metrics can't be served at unix:${taken}: somebody already listens there`);
  expect(code).toBe(69);
  const wrong = await colo('primary', ...args, '--metrics', 'unix:');
  expect(wrong.code).toBe(64);
  expect(wrong.stderr).toContain('must have 1 to 99 bytes');
});

test('an agent that can’t attach ends all the same, and leaves no socket', async () => {
  const socketPath = path.join(folder, 'gone');
  const args = ['--vm', VM_NAME, '--qmp', '/no/such/socket', '--peer', '127.0.0.1:1', '--insecure'];
  const state = ['--state-dir', path.join(folder, 'state'), '--witness', 'none'];
  const { code, stderr } = await colo('primary', ...args, ...state, '--metrics', `unix:${socketPath}`);
  expect(stderr).toContain('/no/such/socket');
  expect(code).toBe(69);
  await expect(ask({ socketPath }, '/health')).rejects.toThrow('ENOENT');
});
