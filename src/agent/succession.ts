/**
 * A standby and what comes after it: once it has taken its VM over, the same process goes on as that VM's primary, in the generation that it has won, and looks
 * for a standby of its own until there is one. The VM is protected again without a person. A primary that has handed its VM over becomes a standby the same way.
 */
import { ControlError, type ControlHandler, isForced } from './control-server.ts';
import type { DrillReport } from './drill-report.ts';
import type { Log } from './log.ts';
import { type AgentOutcome, PrimaryAgent, type PrimaryAgentOptions } from './primary-agent.ts';
import { SecondaryAgent, type SecondaryAgentOptions, type SecondaryOutcome } from './secondary-agent.ts';
import type { Status } from './status.ts';
import { tellSupervisor } from './supervisor-channel.ts';
import { summaryOf, type TakeOverRecord } from './take-over-record.ts';
import { TakeOvers } from './take-overs.ts';

/** Between attempts to attach to a VM that can't be protected: somebody must change something first. */
const RETRY_MS = 30_000;

/** What the agent is to be as a primary, and as a standby: asked for anew each time, because an agent that ends closes what it was given. */
export type Successor = () => Omit<PrimaryAgentOptions, 'inherit'>;
export type StandIn = () => SecondaryAgentOptions;

type Outcome = SecondaryOutcome | AgentOutcome;

export interface SuccessionOptions {
  vm: string;
  log: Log;
  /** Null: whoever has taken over stays alone. */
  successor: Successor | null;
  /** Null: whoever has handed its VM over ends. */
  standIn: StandIn | null;
}

export class Succession implements ControlHandler {
  readonly #options: SuccessionOptions;
  readonly #takeOvers: TakeOvers;
  #secondary: SecondaryAgent | null = null;
  #primary: PrimaryAgent | null = null;
  /** Why the VM that was taken over isn't protected. */
  #trouble: string | null = null;
  #stopping = false;
  /** A primary has handed its VM over, and isn't its standby yet. */
  #turning = false;

  /** Begins as a standby. As SecondaryAgent.attach; `succeed` of its options says what the VM is looked at for now. */
  static async standBy(options: SuccessionOptions & { standIn: StandIn }): Promise<Succession> {
    const succession = new Succession(options);
    succession.#secondary = await SecondaryAgent.attach(options.standIn(), succession.#takeOvers);
    return succession;
  }

  /** Begins as the primary of a VM that runs. As PrimaryAgent.attach. */
  static async protect(options: SuccessionOptions & { successor: Successor }): Promise<Succession> {
    const succession = new Succession(options);
    succession.#primary = await PrimaryAgent.attach({
      ...options.successor(),
      inherit: null,
    });
    return succession;
  }

  private constructor(options: SuccessionOptions) {
    this.#options = options;
    this.#takeOvers = new TakeOvers(options.vm, (record) => tell(record, options.log));
  }

  /** Runs until neither a standby nor a primary has anything left to do. */
  async run(): Promise<Outcome> {
    let outcome = this.#primary === null ? null : await this.#turn(await this.#primary.run());
    while (outcome === null) outcome = await this.#asStandby(this.#secondary as SecondaryAgent);
    return outcome;
  }

  /** Where primaries reach it, HOST:PORT; null while that is nowhere. */
  get listen(): string | null {
    return this.#secondary?.status().listen ?? null;
  }

  /** What every line of the log says; also when the agents have ended. */
  get logContext(): { role: 'primary' | 'secondary'; epoch: number | undefined } {
    const primary = this.#primary;
    return primary === null
      ? { role: 'secondary', epoch: this.#secondary?.epoch }
      : { role: 'primary', epoch: primary.epoch };
  }

  status(): Status {
    const takeOvers = this.#takeOvers.histogram();
    if (this.#primary !== null) return { ...this.#primary.status(), takeOvers };
    const status = { ...(this.#secondary as SecondaryAgent).status(), takeOvers };
    if (this.#trouble === null) return status;
    return { ...status, reason: `${status.reason}; it can't be protected again: ${this.#trouble}` };
  }

  takeOvers(): readonly TakeOverRecord[] {
    return this.#takeOvers.records;
  }

  async failover(force: string | null): Promise<string> {
    if (this.#turning)
      throw new ControlError('refused', 'the VM was handed over, and this is not its standby yet: try again');
    if (this.#primary !== null || this.#secondary === null)
      throw new ControlError('refused', 'this is a primary: run failover on its standby');
    return this.#secondary.failover(isForced(force, this.#options.vm));
  }

  async drill(): Promise<DrillReport> {
    if (this.#primary === null || this.#turning)
      throw new ControlError('refused', 'this is a standby: run drill on its primary');
    return this.#primary.drill();
  }

  async stop(force: string | null): Promise<string> {
    const forced = isForced(force, this.#options.vm);
    if (this.#primary !== null && !this.#turning) {
      this.#stopping = true;
      return this.#primary.stop(forced);
    }
    const runs = !this.#turning && this.#secondary?.status().state === 'RUNNING';
    this.end();
    return runs ? 'protection ends; the VM keeps running' : 'the standby ends; its VM is left as it stands';
  }

  /** In order, whichever it is by now. */
  end(): void {
    this.#stopping = true;
    if (this.#primary !== null) void this.#primary.stop();
    else this.#secondary?.stop();
  }

  /** Null: the VM was handed over, and this is its standby from here on. */
  async #turn(outcome: AgentOutcome): Promise<Outcome | null> {
    const { standIn, log } = this.#options;
    if (outcome.outcome !== 'handed-over' || standIn === null || this.#stopping) return outcome;
    this.#turning = true;
    try {
      this.#secondary = await SecondaryAgent.attach(standIn(), this.#takeOvers);
    } catch (error) {
      const trouble = `this VM can't be its standby: ${(error as Error).message}`;
      log.error('the VM was handed over and has no standby', { reason: trouble });
      return { ...outcome, reason: `${outcome.reason}; ${trouble}` };
    }
    this.#turning = false;
    this.#primary = null;
    if (this.#stopping) this.#secondary.stop();
    return null;
  }

  /** Until it has taken its VM over, and then as its primary. Null: it is a standby again. */
  async #asStandby(secondary: SecondaryAgent): Promise<Outcome | null> {
    const standby = secondary.run();
    const { successor } = this.#options;
    if (successor === null) return standby;
    const ended = await Promise.race([standby, secondary.tookOver.then(() => null)]);
    if (ended !== null) return ended;
    await secondary.handOn();
    return this.#succeed(successor, secondary, standby);
  }

  /** INVARIANT 7: a VM that can't be protected runs on all the same, and is tried again. */
  async #succeed(
    successor: Successor,
    secondary: SecondaryAgent,
    standby: Promise<SecondaryOutcome>,
  ): Promise<Outcome | null> {
    for (;;) {
      const outcome = await this.#runAsPrimary(successor, secondary);
      if (outcome !== null) {
        secondary.stop();
        await standby;
        return this.#turn(outcome);
      }
      const ended = await Promise.race([standby, passed(RETRY_MS)]);
      if (ended !== null) return ended;
    }
  }

  /** Null, with the reason in #trouble, when the VM may be tried again, or when the standby has ended meanwhile. */
  async #runAsPrimary(successor: Successor, secondary: SecondaryAgent): Promise<AgentOutcome | null> {
    try {
      this.#primary = await PrimaryAgent.attach({ ...successor(), inherit: () => secondary.bequeath() });
    } catch (error) {
      this.#failed((error as Error).message);
      return null;
    }
    this.#trouble = null;
    const running = this.#primary.run();
    if (this.#stopping) void this.#primary.stop();
    const outcome = await running;
    // What a person's force has won in the witness's place it may deny; the VM has been left as it was.
    if (outcome.outcome !== 'refused') return outcome;
    this.#primary = null;
    this.#failed(outcome.reason);
    return null;
  }

  #failed(reason: string): void {
    this.#options.log.error("the VM that was taken over can't be protected again", { reason });
    this.#trouble = reason;
  }
}

function tell(record: TakeOverRecord, log: Log): void {
  const { id, decidedBy } = record;
  log.info(summaryOf(record), { id, decidedBy, steps: JSON.stringify(record.steps) });
  tellSupervisor({ type: 'take-over', record });
}

async function passed(ms: number): Promise<null> {
  await new Promise((resolve) => setTimeout(resolve, ms).unref());
  return null;
}
