/**
 * The real machines do what a run of the model does, one step after the other. `Difference` is thrown when they can't, or when afterwards they aren't where
 * the model is. Each host has a time of its own: the model has none.
 */
import type { Message } from '../../src/protocol/messages.ts';
import { Random } from './clock.ts';
import { ModelPrimary, ModelSecondary } from './model-agents.ts';
import { differ, type HostState, NODES, type Surroundings, Witness } from './model-host.ts';
import type { ModelState, ModelStep } from './model-run.ts';

/** These arrive when the model says so, and everything behind them waits; the others arrive at once. */
const WAITED_FOR: readonly string[] = ['send', 'received', 'handover', 'took-over', 'error', 'bye'];

interface Link {
  /** Which side the primary is on. */
  primary: 0 | 1;
  up: [boolean, boolean];
  /** On the way to each side. */
  under: [Message[], Message[]];
  /** The session's epoch whose pages have left, and its number in the model. */
  pages: { epoch: number; number: number } | null;
  /** The model's number of the epoch that the standby holds. */
  held: number;
}

export class Replay implements Surroundings {
  readonly witness = new Witness();
  readonly random: Random;
  private readonly hosts: [HostState, HostState];
  private readonly agents: [ModelPrimary | ModelSecondary | null, ModelPrimary | ModelSecondary | null];
  private link: Link = { primary: 0, up: [false, false], under: [[], []], pages: null, held: 0 };
  private said = 0;
  private ids = 0;

  /** As the model begins: host 0 runs alone in generation 1. The seed chooses between ways in which one step can happen. */
  constructor(seed: number) {
    this.random = new Random(seed);
    this.hosts = [newHost('runs', 'open', 1), newHost('paused', 'closed', 0)];
    this.agents = [null, null];
    const primary = this.startPrimary(0);
    primary.reach();
    primary.execute();
    primary.win();
    this.agents[1] = new ModelSecondary(1, this.hosts[1], this);
  }

  // --- what the agents need --------------------------------------------------------------------------------------------------------

  send(from: 0 | 1, message: Message): void {
    if (this.link.up[from]) this.link.under[other(from)].push(message);
  }

  unlink(side: 0 | 1): void {
    this.link.up[side] = false;
  }

  newId(): string {
    return String(++this.ids).padStart(32, '0');
  }

  // --- the model's steps -----------------------------------------------------------------------------------------------------------

  step({ name, host, after }: ModelStep): void {
    switch (name) {
      case 'witness_executes':
        this.agentOf(host).execute();
        break;
      case 'witness_executes_late':
        this.executeLate(host, after);
        break;
      case 'session_opens':
        this.openSession(host);
        break;
      case 'checkpoint_sent':
        this.sendCheckpoint(host);
        break;
      case 'checkpoint_received':
        this.receiveCheckpoint(host);
        break;
      case 'output_released':
        this.arrive(host, 'received');
        break;
      case 'output_passes':
        this.speak(this.hosts[host].epoch);
        break;
      case 'session_lost':
        this.loseSession(host);
        break;
      case 'hands_over':
        this.handOver(host);
        break;
      case 'took_over':
        this.arrive(host, 'took-over');
        break;
      case 'primary_claims':
        this.primaryOf(host).reach();
        break;
      case 'take_over_fails':
        this.failToTakeOver(host);
        break;
      case 'secondary_claims':
        this.claimAsSecondary(host);
        break;
      case 'protect_won':
        this.primaryOf(host).win();
        break;
      case 'primary_won':
        this.primaryOf(host).win();
        if (this.hosts[host].vm === 'stands') this.primaryOf(host).letGoOn();
        break;
      case 'secondary_won':
        this.secondaryOf(host).win();
        this.hosts[host].epoch = this.link.held + 1;
        break;
      case 'lost':
        this.agentOf(host).reach();
        break;
      case 'agent_dies':
        this.endAgent(host);
        break;
      case 'host_dies':
        this.endAgent(host);
        Object.assign(this.hosts[host], { vm: 'none', gate: 'closed', filters: false });
        break;
      case 'agent_starts':
        // A standby's agent that has let its VM run is stopped for it.
        this.endAgent(host);
        this.startPrimary(host).reach();
        break;
      case 'joins_as_standby':
        this.endAgent(host);
        Object.assign(this.hosts[host], { vm: 'paused', gate: 'closed', filters: false });
        this.agents[host] = new ModelSecondary(host, this.hosts[host], this);
        break;
      default:
        differ(`the code has no ${name}`);
    }
  }

  /** To be compared with the model's. */
  get state(): ModelState {
    const { record } = this.witness.entry;
    if (record === null) differ('the witness has no record');
    const [a, b] = this.hosts;
    return {
      key: {
        generation: record.generation,
        mode: record.mode,
        primary: record.primary === NODES[0] ? 0 : 1,
      },
      gates: [a.gate, b.gate],
      vms: [a.vm, b.vm],
      holds: [this.holds(0), this.holds(1)],
      said: this.said,
    };
  }

  private holds(side: 0 | 1): boolean {
    const agent = this.agents[side];
    // What it has let run is no checkpoint any more.
    return agent instanceof ModelSecondary && agent.holds && this.hosts[side].vm !== 'runs';
  }

  private executeLate(host: 0 | 1, after: ModelState | null): void {
    const { revision } = this.witness.entry;
    const found = this.hosts[host].late.find(
      ({ expected, record }) =>
        expected === revision &&
        record.mode === after?.key.mode &&
        record.generation === after.key.generation,
    );
    this.witness.execute(
      found ?? differ(`nothing of ${NODES[host]} is under way that makes ${JSON.stringify(after?.key)}`),
    );
  }

  /** From HELLO to the end of the first copy. */
  private openSession(host: 0 | 1): void {
    const primary = this.primaryOf(host);
    const secondary = this.secondaryOf(other(host));
    primary.wait('connect', () => primary.connecting);
    this.link = { primary: host, up: [true, true], under: [[], []], pages: null, held: 0 };
    secondary.step({ type: 'peer-connected' });
    primary.begin();
    this.pump();
    secondary.settle('disks-settled'); // of a take-over that it has given up for this session
    this.pump();
    if (!primary.synced) differ(`${NODES[host]} gets no session`);
    secondary.stage(0);
    this.pump();
  }

  /**
   * The model has no SUSPENDED: a standby that has left the session confirms nothing more, and a primary that doesn't know it yet waits for it with its
   * gate holding, where the model's sends another checkpoint to nobody.
   */
  private sendCheckpoint(host: 0 | 1): void {
    const primary = this.primaryOf(host);
    const guest = this.hosts[host];
    const number = guest.epoch;
    if (this.link.up[other(host)] || guest.gate !== 'holds')
      primary.wait('a checkpoint', () => primary.stopDue !== null);
    if (primary.stopDue === null) {
      guest.epoch++;
      return;
    }
    const epoch = primary.stopDue;
    primary.stopVm();
    if (this.link.up[other(host)]) this.link.pages = { epoch, number };
  }

  private receiveCheckpoint(host: 0 | 1): void {
    const secondary = this.secondaryOf(host);
    const pages = this.link.pages ?? differ('no pages are under way');
    this.link.pages = null;
    const stagedFirst = this.random.chance(0.5);
    if (stagedFirst) secondary.stage(pages.epoch);
    this.arrive(host, 'send');
    if (!stagedFirst) secondary.stage(pages.epoch);
    this.link.held = pages.number;
    this.pump();
  }

  /** From the order to HANDOVER. */
  private handOver(host: 0 | 1): void {
    const primary = this.primaryOf(host);
    const standby = other(host);
    primary.beginDrill();
    // One may have been under way already.
    for (;;) {
      primary.wait('a checkpoint or a stand', () => primary.stopDue !== null || primary.standDue);
      const epoch = primary.stopDue;
      if (epoch === null) break;
      primary.stopVm();
      this.secondaryOf(standby).stage(epoch);
      this.arrive(standby, 'send');
      this.arrive(host, 'received');
    }
    primary.stand();
  }

  /** In one of the ways in which a session is lost. */
  private loseSession(host: 0 | 1): void {
    const agent = this.agentOf(host);
    const [first] = this.link.under[host];
    if (first?.body.type === 'error' && this.random.chance(0.5)) this.arrive(host, 'error');
    else if (this.random.chance(0.5)) agent.step({ type: 'peer-silent', reason: 'silence', heardMs: 0 });
    else agent.step({ type: 'peer-lost', reason: 'the connection is closed' });
    this.link.up[host] = false;
    this.link.under[host] = [];
    if (host !== this.link.primary) this.link.pages = null;
    if (agent instanceof ModelPrimary && agent.stopDue !== null) agent.stopVm();
  }

  /** One that knows its primary to live waits for a while before it asks. */
  private claimAsSecondary(host: 0 | 1): void {
    const secondary = this.secondaryOf(host);
    if (this.link.under[host][0]?.body.type === 'handover') this.arrive(host, 'handover');
    secondary.wait('its claim', () => secondary.settleDue);
    secondary.settle('disks-settled');
    secondary.reach();
  }

  private failToTakeOver(host: 0 | 1): void {
    const secondary = this.secondaryOf(host);
    secondary.wait('its take-over', () => secondary.settleDue);
    secondary.settle('settle-failed');
  }

  private startPrimary(host: 0 | 1): ModelPrimary {
    const agent = new ModelPrimary(host, this.hosts[host], this, (epoch) => this.speak(epoch));
    this.agents[host] = agent;
    return agent;
  }

  private endAgent(host: 0 | 1): void {
    const agent = this.agents[host];
    const guest = this.hosts[host];
    agent?.leaveUnderWay();
    this.agents[host] = null;
    this.link.up[host] = false;
    if (agent instanceof ModelPrimary) this.link.pages = null;
    this.link.under[host] = [];
    if (!guest.filters) return;
    // It fails closed.
    guest.filters = false;
    guest.gate = 'closed';
  }

  private speak(epoch: number): void {
    this.said = Math.max(this.said, epoch);
  }

  // --- the link --------------------------------------------------------------------------------------------------------------------

  /** What waits first on the way to this side arrives, and has to be of this type. */
  private arrive(side: 0 | 1, type: string): void {
    const message = this.link.under[side].shift();
    if (message?.body.type !== type)
      differ(`${type} is to come to ${NODES[side]}, first comes ${message?.body.type ?? 'nothing'}`);
    this.agentOf(side).step({ type: 'message', message });
    this.pump();
  }

  private pump(): void {
    for (;;) {
      const side = ([0, 1] as const).find((to) => {
        const type = this.link.under[to][0]?.body.type;
        return this.link.up[to] && type !== undefined && !WAITED_FOR.includes(type);
      });
      if (side === undefined) return;
      const message = this.link.under[side].shift() as Message;
      this.agentOf(side).step({ type: 'message', message });
    }
  }

  private agentOf(host: 0 | 1): ModelPrimary | ModelSecondary {
    return this.agents[host] ?? differ(`${NODES[host]} has no agent`);
  }

  private primaryOf(host: 0 | 1): ModelPrimary {
    const agent = this.agents[host];
    return agent instanceof ModelPrimary ? agent : differ(`${NODES[host]} has no primary's agent`);
  }

  private secondaryOf(host: 0 | 1): ModelSecondary {
    const agent = this.agents[host];
    return agent instanceof ModelSecondary ? agent : differ(`${NODES[host]} has no standby's agent`);
  }
}

function newHost(vm: HostState['vm'], gate: HostState['gate'], epoch: number): HostState {
  return { vm, gate, filters: false, recorded: 0, won: 0, epoch, late: [] };
}

function other(side: 0 | 1): 0 | 1 {
  return side === 0 ? 1 : 0;
}
