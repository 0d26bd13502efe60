/** What a survivor owes between its take-over and its life as a primary, with a real etcd; the VM's parts answer when the test says so. */
import { mkdtempSync, rmSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { Arbitration, type WitnessChoice } from '../../src/agent/arbitration.ts';
import { GenerationFile } from '../../src/agent/generation-file.ts';
import { Log } from '../../src/agent/log.ts';
import { PrimaryAgent } from '../../src/agent/primary-agent.ts';
import { attachPrimary } from '../../src/agent/primary-attach.ts';
import type { PrimaryVm, PrimaryVmListener } from '../../src/agent/primary-vm.ts';
import { SecondaryAgent, type SecondaryAgentOptions } from '../../src/agent/secondary-agent.ts';
import { attachStandby } from '../../src/agent/standby-attach.ts';
import type { StandbyVm } from '../../src/agent/standby-vm.ts';
import { Succession, type Successor } from '../../src/agent/succession.ts';
import { encodeMessage } from '../../src/protocol/codec.ts';
import {
  type ClaimEvent,
  DEFAULT_TIMINGS,
  type PrimaryEffect,
  type SecondaryEffect,
} from '../../src/protocol/machine.ts';
import type { Body } from '../../src/protocol/messages.ts';
import { encodePreface } from '../../src/protocol/preface.ts';
import { vmIdOf } from '../../src/protocol/vm-id.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { TestEtcd } from '../../src/testbed/etcd.ts';
import { waitFor } from '../../src/testbed/wait.ts';
import { EtcdClient } from '../../src/witness/etcd.ts';

vi.mock('../../src/agent/standby-attach.ts', () => ({ attachStandby: vi.fn() }));
vi.mock('../../src/agent/primary-attach.ts', () => ({ attachPrimary: vi.fn() }));

const SILENT = new Log(
  'error',
  () => ({}),
  () => {},
);
const VM = 'web1';
const GENERATION = 1;
const PATIENCE_MS = 60_000;
const ELSEWHERE = 'somebody else has its userfaultfd';

let etcd: TestEtcd;
let cleanup: Cleanup;
let folder: string;
let keys = 0;
let giveUp = () => {};

beforeAll(async () => {
  etcd = await TestEtcd.start();
});
afterAll(() => etcd.destroy());
beforeEach(() => {
  cleanup = new Cleanup();
  folder = mkdtempSync(path.join(tmpdir(), 'colo-succession-'));
  cleanup.add(() => rmSync(folder, { recursive: true }));
  keys += 1;
  vi.mocked(attachPrimary).mockReset();
});
afterEach(() => cleanup.run());

type Witness = WitnessChoice & { kind: 'etcd' };

function witnessOf(node: string): Witness {
  const endpoints = etcd.endpoints.map((endpoint) => new URL(endpoint));
  const open = { ca: null, cert: null, key: null, user: null, password: null };
  const client = new EtcdClient({ endpoints, ...open, requestTimeoutMs: 10_000 });
  cleanup.add(() => client.close());
  return {
    kind: 'etcd',
    client,
    key: `/colo-agent/vm/web${keys}`,
    nodeKey: `/colo-agent/node/${node}/web${keys}`,
  };
}

/** North's side of the witness. */
class North {
  readonly #witness = witnessOf('north');
  readonly #answers: ClaimEvent[] = [];
  readonly #arbitration: Arbitration;

  constructor() {
    const generations = new GenerationFile(path.join(folder, 'north'), VM, 'north');
    const options = { witness: this.#witness, node: 'north', generations, log: SILENT };
    this.#arbitration = new Arbitration(options, (event) => {
      if (event.type !== 'superseded') this.#answers.push(event);
    });
    cleanup.add(() => this.#arbitration.close());
  }

  async win(claim: Parameters<Arbitration['ask']>[0]): Promise<void> {
    this.#answers.length = 0;
    this.#arbitration.ask(claim);
    await waitFor(`north's ${claim.kind}`, PATIENCE_MS, () =>
      this.#answers.some(({ type }) => type === 'claim-won'),
    );
  }

  /** What the witness holds, as soon as it names south. */
  waitForSouth(): Promise<{ generation: number }> {
    return waitFor('the record of south', PATIENCE_MS, async () => {
      const record = await this.#arbitration.read().catch(() => null);
      return record?.primary === 'south' && record;
    });
  }
}

/** Every step ends well, at once; but for one that is to wait. */
class WillingStandby {
  readonly pid = process.pid;
  readonly disks = [];
  readonly flushMs = { summary: () => null, histogram: () => null };
  readonly loadMs = this.flushMs;
  readonly scrubMs = this.flushMs;
  readonly asked: SecondaryEffect['type'][] = [];
  holds: SecondaryEffect['type'] | null = null;
  #held: SecondaryEffect | null = null;
  #answer: Parameters<StandbyVm['listen']>[0] = () => {};

  listen(onEvent: Parameters<StandbyVm['listen']>[0]): void {
    this.#answer = onEvent;
  }

  perform(effect: SecondaryEffect): void {
    this.asked.push(effect.type);
    if (effect.type === this.holds) this.#held = effect;
    else this.#carryOut(effect);
  }

  release(): void {
    this.#carryOut(this.#held as SecondaryEffect);
  }

  #carryOut(effect: SecondaryEffect): void {
    if (effect.type === 'compare') this.#answer({ type: 'compared', difference: null });
    else if (effect.type === 'open-session') {
      this.#answer({ type: 'session-opened', bulkToken: '1'.repeat(32), lineages: [] });
      this.#answer({ type: 'staged', epoch: 0, pages: 0, vmstateBytes: 0 });
    } else if (effect.type === 'open-epoch')
      this.#answer({ type: 'staged', epoch: effect.epoch, pages: 0, vmstateBytes: 1 });
    else if (effect.type === 'flush') this.#answer({ type: 'flushed', epoch: effect.epoch });
    else if (effect.type === 'load') this.#answer({ type: 'loaded', epoch: effect.epoch });
    else if (effect.type === 'settle-disks') this.#answer({ type: 'disks-settled' });
    else if (effect.type === 'promote') this.#answer({ type: 'promoted' });
  }

  async handOn(): Promise<void> {}
  async detach(): Promise<void> {}
}

class WillingPrimary {
  readonly pid = process.pid;
  readonly description = {};
  readonly foundClosedGate = false;
  readonly tracker = { kind: 'compare', reason: '' };
  readonly disks = { any: false, generation: 1, record: async () => {}, status: () => [] };
  detached = false;
  #answer: PrimaryVmListener['onEvent'] = () => {};

  listen({ onEvent }: PrimaryVmListener): void {
    this.#answer = onEvent;
  }

  perform({ type }: PrimaryEffect): void {
    if (type === 'hand-over') this.#answer({ type: 'handed-over' });
  }

  heldOutput() {
    return { heldFrames: 0, heldBytes: 0, droppedFrames: 0 };
  }
  async detach(): Promise<void> {
    this.detached = true;
  }
}

/** Nothing is known of an attempt to attach until the test, or its end, says how it ends. */
function heldAttach(): (vm: WillingPrimary) => void {
  let succeed: (vm: PrimaryVm) => void = () => {};
  vi.mocked(attachPrimary).mockReturnValueOnce(
    new Promise((resolve, reject) => {
      succeed = resolve;
      giveUp = () => reject(new Error(ELSEWHERE));
    }),
  );
  return (vm) => succeed(vm as unknown as PrimaryVm);
}

const optionsOf = () => ({
  vm: VM,
  qmpPath: '',
  credentials: null,
  node: 'south',
  stateFolder: path.join(folder, 'south'),
  timings: DEFAULT_TIMINGS,
  traceFile: null,
  log: SILENT,
});

const standIn = (): SecondaryAgentOptions => ({
  ...optionsOf(),
  witness: witnessOf('south'),
  listen: { host: '127.0.0.1', port: 0 },
  overwriteDisks: [],
  succeed: null,
  fence: null,
});

const successor: Successor = () => ({
  ...optionsOf(),
  witness: witnessOf('south'),
  peer: { host: '127.0.0.1', port: 1 },
  mode: 'pipelined',
  connections: 1,
  tracker: 'compare',
  shadow: false,
  threads: 1,
  scrubSliceBytes: 0,
  syncBytesPerSecond: 0,
  gateLimitBytes: 0,
  diskBufferBytes: 0,
  exceptions: { ungatedNics: [], ungatedDisks: [], sharedDisks: [] },
  standsByLater: false,
});

interface South {
  vm: WillingStandby;
  agent: Succession;
  ended: ReturnType<Succession['run']>;
}

async function startSouth(): Promise<South> {
  const vm = new WillingStandby();
  vi.mocked(attachStandby).mockResolvedValue(vm as unknown as StandbyVm);
  const agent = await Succession.standBy({ vm: VM, log: SILENT, standIn, successor });
  const ended = agent.run();
  cleanup.add(async () => {
    agent.end();
    giveUp();
    await ended;
  });
  return { vm, agent, ended };
}

/** A primary that brings one checkpoint; resolves with its end. */
async function protectAt({ vm, agent }: South): Promise<() => void> {
  const socket = connect(Number(agent.listen?.split(':')[1]), '127.0.0.1');
  cleanup.add(() => void socket.destroy());
  socket.on('error', () => {});
  const say = (epoch: number, body: Body) =>
    socket.write(encodeMessage({ vmId: vmIdOf(VM), generation: GENERATION, epoch, body }));
  socket.write(encodePreface({ link: 'control' }));
  const mode = { mode: 'pipelined', connections: 1, arbitration: 'witness' } as const;
  say(0, { type: 'hello', description: {}, lineage: 'a'.repeat(32), node: 'north', ...mode });
  await waitFor('READY', PATIENCE_MS, () => vm.asked.includes('open-session'));
  say(1, { type: 'new' });
  say(1, { type: 'send', pages: 0, vmstateBytes: 1 });
  await waitFor('the checkpoint', PATIENCE_MS, () => vm.asked.includes('load'));
  return () => void socket.destroy();
}

/** South is protected's other end by the witness, and holds a checkpoint. */
async function standing(): Promise<{ north: North; south: South; lose(): void }> {
  const north = new North();
  await north.win({ kind: 'alone', atLeast: GENERATION });
  await north.win({ kind: 'protected', generation: GENERATION, secondary: 'south' });
  const south = await startSouth();
  return { north, south, lose: await protectAt(south) };
}

/** The primary is gone while the witness is silent, and a person decides. */
async function forced(): Promise<{ north: North; south: South }> {
  const { north, south, lose } = await standing();
  etcd.kill(0);
  lose();
  await waitFor('the take-over', PATIENCE_MS, () => south.agent.status().state === 'BLOCKED');
  expect(await south.agent.failover(VM)).toMatch(/the witness does not know of it/);
  await waitFor('the attempt to go on', PATIENCE_MS, () => vi.mocked(attachPrimary).mock.calls.length > 0);
  await etcd.restart(0);
  return { north, south };
}

test('everybody who orders a take-over is told what came of it', async () => {
  vi.mocked(attachPrimary).mockRejectedValue(new Error(ELSEWHERE));
  const { south, lose } = await standing();
  south.vm.holds = 'settle-disks';
  lose();
  await waitFor('its disks', PATIENCE_MS, () => south.vm.asked.includes('settle-disks'));
  const orders = [south.agent.failover(null), south.agent.failover(null)];
  south.vm.release();
  expect(await Promise.all(orders)).toEqual(['took over', 'took over']);
});

test('who cannot attach to its VM leaves no connection to the witness', async () => {
  const witness = witnessOf('south');
  const close = vi.spyOn(witness.client, 'close');
  vi.mocked(attachPrimary).mockRejectedValue(new Error(ELSEWHERE));
  await expect(PrimaryAgent.attach({ ...successor(), witness, inherit: null })).rejects.toThrow(ELSEWHERE);
  expect(close).toHaveBeenCalledTimes(1);
  vi.mocked(attachStandby).mockReset().mockRejectedValue(new Error(ELSEWHERE));
  await expect(SecondaryAgent.attach({ ...standIn(), witness })).rejects.toThrow(ELSEWHERE);
  expect(close).toHaveBeenCalledTimes(2);
});

describe('a primary that has ended', () => {
  test('hands nothing over any more, and says why', async () => {
    vi.mocked(attachPrimary).mockResolvedValue(new WillingPrimary() as unknown as PrimaryVm);
    const agent = await PrimaryAgent.attach({ ...successor(), witness: { kind: 'none' }, inherit: null });
    const ended = agent.run();
    await agent.stop();
    expect(await ended).toMatchObject({ outcome: 'stopped' });
    const why = 'protection has ended here: stopped by command';
    await expect(agent.drill()).rejects.toThrow(why);
    expect(await agent.stop()).toBe(why);
  });

  test('and that is not a standby yet answers as one', async () => {
    const primary = {
      run: async () => ({ outcome: 'handed-over', reason: 'it runs on south' }),
      drill: () => new Promise(() => {}),
      stop: async () => 'protection ends; the VM keeps running',
    };
    const attach = vi.spyOn(PrimaryAgent, 'attach').mockResolvedValue(primary as unknown as PrimaryAgent);
    cleanup.add(() => attach.mockRestore());
    let attached: (vm: StandbyVm) => void = () => {};
    const standing = new Promise<StandbyVm>((resolve) => {
      attached = resolve;
    });
    vi.mocked(attachStandby).mockReset().mockReturnValue(standing);
    const agent = await Succession.protect({ vm: VM, log: SILENT, standIn, successor });
    const ended = agent.run();
    await waitFor('its turn', PATIENCE_MS, () => vi.mocked(attachStandby).mock.calls.length > 0);
    await expect(agent.drill()).rejects.toThrow('this is a standby: run drill on its primary');
    await expect(agent.failover(null)).rejects.toThrow('this is not its standby yet');
    expect(await agent.stop(null)).toBe('the standby ends; its VM is left as it stands');
    attached(new WillingStandby() as unknown as StandbyVm);
    expect(await ended).toMatchObject({ outcome: 'stopped' });
  });
});

describe('a survivor that is no primary yet', { timeout: 180_000 }, () => {
  test("writes a person's word down, and ends when it is superseded, though its VM can't be attached to", async () => {
    vi.mocked(attachPrimary).mockRejectedValue(new Error(ELSEWHERE));
    const { north, south } = await forced();
    const { generation } = await north.waitForSouth();
    await north.win({ kind: 'seize', atLeast: generation + 1 });
    expect(await south.ended).toMatchObject({ outcome: 'fenced' });
    expect(south.vm.asked).toContain('quit-vm');
  });

  test('goes on in what has been won while it attached: the witness is not asked again', async () => {
    const attach = heldAttach();
    const { north, south } = await forced();
    const record = await north.waitForSouth();
    await waitFor('its word', PATIENCE_MS, () => south.agent.status().reason === 'took over');
    attach(new WillingPrimary());
    await waitFor('the primary', PATIENCE_MS, () => south.agent.status().role === 'primary');
    expect(south.agent.status().generation).toBe(record.generation);
    expect(await north.waitForSouth()).toEqual(record);
  });

  test('never becomes one when it was superseded while it attached', async () => {
    const attach = heldAttach();
    const { north, south, lose } = await standing();
    lose();
    await waitFor('the attempt to go on', PATIENCE_MS, () => vi.mocked(attachPrimary).mock.calls.length > 0);
    await north.win({ kind: 'seize', atLeast: 5 });
    await waitFor('quit', PATIENCE_MS, () => south.vm.asked.includes('quit-vm'));
    const vm = new WillingPrimary();
    attach(vm);
    expect(await south.ended).toMatchObject({ outcome: 'fenced' });
    expect(vm.detached).toBe(true);
    expect(south.agent.status().state).toBe('FENCED');
  });
});
