/** An agent's side of arbitration against a real etcd, and the generation that its host remembers. */
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { Arbitration } from '../../src/agent/arbitration.ts';
import { GenerationFile } from '../../src/agent/generation-file.ts';
import { Log } from '../../src/agent/log.ts';
import type { ClaimEvent, Superseded } from '../../src/protocol/machine.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { TestEtcd } from '../../src/testbed/etcd.ts';
import { waitFor } from '../../src/testbed/wait.ts';
import { ABSENT, EtcdClient } from '../../src/witness/etcd.ts';
import { LossyRelay } from './etcd-relay.ts';

const SILENT = new Log('error', () => ({}));

let etcd: TestEtcd;
let cleanup: Cleanup;
let folder: string;
let key: string;
let keys = 0;

beforeAll(async () => {
  etcd = await TestEtcd.start();
});
afterAll(() => etcd.destroy());
beforeEach(() => {
  cleanup = new Cleanup();
  folder = mkdtempSync(path.join(tmpdir(), 'colo-state-'));
  cleanup.add(() => rmSync(folder, { recursive: true }));
  key = `/colo-agent/vm/web${keys++}`;
});
afterEach(() => cleanup.run());

const newClient = (endpoints = etcd.endpoints) =>
  new EtcdClient({
    endpoints: endpoints.map((endpoint) => new URL(endpoint)),
    ca: null,
    cert: null,
    key: null,
    user: null,
    password: null,
    requestTimeoutMs: 1000,
  });

interface Host {
  arbitration: Arbitration;
  answers: ClaimEvent[];
  superseded: Superseded[];
  generations: GenerationFile;
  state: string;
}

function host(node: string, state = path.join(folder, node), endpoints = etcd.endpoints): Host {
  const generations = new GenerationFile(state, 'web', node);
  const answers: ClaimEvent[] = [];
  const superseded: Superseded[] = [];
  const witness = { kind: 'etcd' as const, client: newClient(endpoints), key, nodeKey: `${key}/${node}` };
  const arbitration = new Arbitration({ witness, node, generations, log: SILENT }, (event) => {
    // INVARIANT 4: what is told to be won is durable already.
    if (event.type === 'claim-won')
      expect(new GenerationFile(state, 'web', node).highest).toBe(event.generation);
    if (event.type !== 'superseded') answers.push(event);
    else superseded.push(event);
  });
  cleanup.add(() => arbitration.close());
  return { arbitration, answers, superseded, generations, state };
}

async function remove(name: string): Promise<void> {
  const body = JSON.stringify({ key: Buffer.from(name).toString('base64') });
  await fetch(new URL('/v3/kv/deleterange', etcd.endpoints[0]), { method: 'POST', body });
}

const answered = ({ answers }: Host, type: ClaimEvent['type']) =>
  waitFor(`${type}`, 10_000, () => answers.find((answer) => answer.type === type));

describe('claims at a real etcd', () => {
  test('from nothing to alone, protected, and the take-over', async () => {
    const [north, south] = [host('north'), host('south')];
    north.arbitration.ask({ kind: 'alone', atLeast: 1 });
    expect(await answered(north, 'claim-won')).toEqual({ type: 'claim-won', kind: 'alone', generation: 1 });
    north.answers.length = 0;
    north.arbitration.ask({ kind: 'protected', generation: 1, secondary: 'south' });
    expect(await answered(north, 'claim-won')).toMatchObject({ kind: 'protected', generation: 1 });
    south.arbitration.ask({ kind: 'take-over', generation: 1, primary: 'north' });
    expect(await answered(south, 'claim-won')).toMatchObject({ kind: 'take-over', generation: 2 });
    north.arbitration.ask({ kind: 'alone', atLeast: 2 });
    expect(await answered(north, 'claim-lost')).toMatchObject({
      reason: `by the witness it runs on south in generation 2 (${key})`,
    });
    expect(north.arbitration.status()).toEqual({ kind: 'etcd', node: 'north', answers: true, reason: '' });
  });

  test('both at once, again and again: one wins', async () => {
    for (let round = 0; round < 10; round++) {
      key = `/colo-agent/vm/race${round}`;
      const [north, south] = [
        host('north', path.join(folder, `n${round}`)),
        host('south', path.join(folder, `s${round}`)),
      ];
      north.arbitration.ask({ kind: 'alone', atLeast: 1 });
      await answered(north, 'claim-won');
      north.answers.length = 0;
      north.arbitration.ask({ kind: 'protected', generation: 1, secondary: 'south' });
      await answered(north, 'claim-won');
      north.answers.length = 0;
      north.arbitration.ask({ kind: 'alone', atLeast: 2 });
      south.arbitration.ask({ kind: 'take-over', generation: 1, primary: 'north' });
      const words = await Promise.all(
        [north, south].map(({ answers }) =>
          waitFor('a word', 10_000, () => answers.find(({ type }) => type !== 'claim-unanswered')?.type),
        ),
      );
      expect(words.sort()).toEqual(['claim-lost', 'claim-won']);
    }
  });

  test('the answer to the first transaction is lost: its claim is won all the same, and once', async () => {
    const relay = cleanup.own(await LossyRelay.open(etcd.endpoints[0] as string));
    let lost = 0;
    relay.losesAnswersTo = (request) => request.includes('/v3/kv/txn') && lost++ < 2;
    const north = host('north', path.join(folder, 'north'), [relay.endpoint]);
    north.arbitration.ask({ kind: 'alone', atLeast: 1 });
    expect(await answered(north, 'claim-won')).toMatchObject({ generation: 1 });
    expect(north.answers.map(({ type }) => type)).toEqual(['claim-unanswered', 'claim-won']);
    const client = newClient();
    cleanup.add(() => client.close());
    expect(JSON.parse((await client.read(key))?.value ?? '')).toMatchObject({ generation: 1, mode: 'alone' });
  });

  test('a claim in place of another: the first is not told any more', async () => {
    const north = host('north');
    north.arbitration.ask({ kind: 'alone', atLeast: 1 });
    north.arbitration.ask({ kind: 'alone', atLeast: 5 });
    const { generation } = (await answered(north, 'claim-won')) as ClaimEvent & { type: 'claim-won' };
    expect(generation).toBeGreaterThanOrEqual(5);
    expect(north.answers.filter(({ type }) => type === 'claim-won')).toHaveLength(1);
  });

  test('what somebody else has written there is no decision', async () => {
    const client = newClient();
    cleanup.add(() => client.close());
    await client.putIf(key, ABSENT, 'hello');
    const north = host('north');
    north.arbitration.ask({ kind: 'alone', atLeast: 1 });
    expect(await answered(north, 'claim-unanswered')).toMatchObject({
      reason: expect.stringContaining(`${key} holds no record of colo-agent: it is not JSON`),
    });
    expect(await client.read(key)).toMatchObject({ value: 'hello' });
  });

  test('a record that has gone is no decision for a host that has won one', async () => {
    const north = host('north');
    north.arbitration.ask({ kind: 'alone', atLeast: 1 });
    await answered(north, 'claim-won');
    const client = newClient();
    cleanup.add(() => client.close());
    const held = (await client.read(key))?.value ?? '';
    await remove(key);
    north.answers.length = 0;
    north.arbitration.ask({ kind: 'alone', atLeast: 2 });
    expect(await answered(north, 'claim-unanswered')).toMatchObject({
      reason: expect.stringMatching(/has no record of this VM, and this host knows of generation 1/),
    });
    // Nor for its next agent, which has the file.
    const again = host('north');
    again.arbitration.ask({ kind: 'alone', atLeast: 2 });
    await answered(again, 'claim-unanswered');
    again.arbitration.withdraw();
    await client.putIf(key, ABSENT, held);
    expect(await answered(north, 'claim-won')).toMatchObject({ generation: 2 });
  });

  test("a person's word is written down whatever is there, and whoever runs alone sees it", async () => {
    const [north, south] = [host('north'), host('south')];
    south.arbitration.ask({ kind: 'seize', atLeast: 1 });
    expect(await answered(south, 'claim-won')).toMatchObject({ kind: 'seize', generation: 1 });
    north.arbitration.ask({ kind: 'seize', atLeast: 1 });
    const { generation } = (await answered(north, 'claim-won')) as ClaimEvent & { type: 'claim-won' };
    const [seen] = await waitFor('its end', 30_000, () => south.superseded.length > 0 && south.superseded);
    expect(seen).toEqual({
      type: 'superseded',
      generation,
      reason: `by the witness it runs on north in generation ${generation} (${key})`,
    });
    expect(north.superseded).toEqual([]);
  });

  test('a host that cannot remember what it has won is not told before it can', async () => {
    const obstacle = path.join(folder, 'obstacle');
    writeFileSync(obstacle, '');
    const north = host('north', path.join(obstacle, 'state'));
    north.arbitration.ask({ kind: 'alone', atLeast: 1 });
    expect(await answered(north, 'claim-unanswered')).toMatchObject({
      reason: expect.stringMatching(/can't record generation 1 .*--state-dir/),
    });
    rmSync(obstacle);
    expect(await answered(north, 'claim-won')).toMatchObject({ generation: 1 });
  });
});

describe('the generation that a host remembers', () => {
  test('grows, and outlives the agent', async () => {
    const file = new GenerationFile(folder, 'web', 'north');
    expect(file.highest).toBe(0);
    await Promise.all([file.record(3), file.record(7), file.record(5)]);
    expect(file.highest).toBe(7);
    expect(new GenerationFile(folder, 'web', 'north').highest).toBe(7);
    expect(new GenerationFile(folder, 'other', 'north').highest).toBe(0);
    expect(readdirSync(folder)).toEqual(['web.generation']);
  });

  test('which of them it has won itself', async () => {
    const file = new GenerationFile(folder, 'web', 'north');
    await Promise.all([file.win(3), file.record(7), file.win(5)]);
    expect([file.highest, file.won]).toEqual([7, 5]);
    const again = new GenerationFile(folder, 'web', 'north');
    expect([again.highest, again.won]).toEqual([7, 5]);
  });

  test('belongs to the name that the host had', async () => {
    await new GenerationFile(folder, 'web', 'north').record(3);
    expect(() => new GenerationFile(folder, 'web', 'south')).toThrow(
      /takes part in web as north .*, and is called south now: .*Give --node north/s,
    );
    // What an older version has written has no name yet.
    writeFileSync(
      path.join(folder, 'web.generation'),
      JSON.stringify({ format: 1, vm: 'web', generation: 4 }),
    );
    expect(new GenerationFile(folder, 'web', 'south').highest).toBe(4);
  });

  test('is written once more before a claim, which tells whether the next one can be', async () => {
    const file = new GenerationFile(folder, 'web', 'north');
    await file.record(3);
    await file.rewrite();
    expect(new GenerationFile(folder, 'web', 'north').highest).toBe(3);
    rmSync(folder, { recursive: true });
    writeFileSync(folder, '');
    await expect(file.rewrite()).rejects.toThrow(/--state-dir/);
  });

  test.each([
    ['nonsense', 'x'],
    ["another VM's", JSON.stringify({ format: 1, vm: 'other', generation: 1 })],
    ['no name', JSON.stringify({ format: 1, vm: 'web', generation: 1, node: '' })],
    ['no number', JSON.stringify({ format: 1, vm: 'web', generation: '1' })],
  ])('%s is no generation', (_, text) => {
    writeFileSync(path.join(folder, 'web.generation'), text);
    expect(() => new GenerationFile(folder, 'web', 'north')).toThrow(
      /web\.generation doesn't hold a generation: .* Remove it/s,
    );
  });
});
