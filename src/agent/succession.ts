/**
 * A standby and what comes after it: once it has taken its VM over, the same process goes on as that VM's primary, in the generation that it has won, and looks
 * for a standby of its own until there is one. The VM is protected again without a person.
 */
import { ControlError, type ControlHandler, isForced } from './control-server.ts';
import { type AgentOutcome, PrimaryAgent, type PrimaryAgentOptions } from './primary-agent.ts';
import { SecondaryAgent, type SecondaryAgentOptions, type SecondaryOutcome } from './secondary-agent.ts';
import type { Status } from './status.ts';

/** Between attempts to attach to a VM that can't be protected: somebody must change something first. */
const RETRY_MS = 30_000;

/** What the agent is to be as a primary. */
export type Successor = () => Omit<PrimaryAgentOptions, 'tookOver' | 'forced'>;

export class Succession implements ControlHandler {
  readonly #options: SecondaryAgentOptions;
  readonly #secondary: SecondaryAgent;
  /** Null: whoever takes over stays alone. */
  readonly #successor: Successor | null;
  #primary: PrimaryAgent | null = null;
  /** Why the VM that was taken over isn't protected. */
  #trouble: string | null = null;
  #stopping = false;

  /**
   * As SecondaryAgent.attach. `successor` is asked for what the primary is to be, anew for each attempt, because an agent that ends closes what it was given;
   * `options.succeed` says what the VM is looked at for now.
   */
  static async attach(options: SecondaryAgentOptions, successor: Successor | null): Promise<Succession> {
    return new Succession(options, await SecondaryAgent.attach(options), successor);
  }

  private constructor(
    options: SecondaryAgentOptions,
    secondary: SecondaryAgent,
    successor: Successor | null,
  ) {
    this.#options = options;
    this.#secondary = secondary;
    this.#successor = successor;
  }

  /** Runs until neither the standby nor the primary has anything left to do. */
  async run(): Promise<SecondaryOutcome | AgentOutcome> {
    const standby = this.#secondary.run();
    const successor = this.#successor;
    if (successor === null) return standby;
    const ended = await Promise.race([standby, this.#secondary.tookOver.then(() => null)]);
    if (ended !== null) return ended;
    await this.#secondary.handOn();
    return this.#succeed(successor, standby);
  }

  /** Where primaries reach it: HOST:PORT. */
  get listen(): string {
    return this.#secondary.status().listen;
  }

  /** What every line of the log says; also when the agents have ended. */
  get logContext(): { role: 'primary' | 'secondary'; epoch: number } {
    const primary = this.#primary;
    return primary === null
      ? { role: 'secondary', epoch: this.#secondary.epoch }
      : { role: 'primary', epoch: primary.epoch };
  }

  status(): Status {
    if (this.#primary !== null) return this.#primary.status();
    const status = this.#secondary.status();
    if (this.#trouble === null) return status;
    return { ...status, reason: `${status.reason}; it can't be protected again: ${this.#trouble}` };
  }

  async failover(force: string | null): Promise<string> {
    if (this.#primary !== null)
      throw new ControlError(
        'refused',
        'this VM was taken over and is a primary now: run failover on its standby',
      );
    return this.#secondary.failover(isForced(force, this.#options.vm));
  }

  async stop(force: string | null): Promise<string> {
    const forced = isForced(force, this.#options.vm);
    if (this.#primary !== null) {
      this.#stopping = true;
      return this.#primary.stop(forced);
    }
    const runs = this.#secondary.status().state === 'RUNNING';
    this.end();
    return runs ? 'protection ends; the VM keeps running' : 'the standby ends; its VM is left as it stands';
  }

  /** In order, whichever it is by now. */
  end(): void {
    this.#stopping = true;
    if (this.#primary !== null) void this.#primary.stop();
    else this.#secondary.stop();
  }

  /** INVARIANT 7: a VM that can't be protected runs on all the same, and is tried again. */
  async #succeed(
    successor: Successor,
    standby: Promise<SecondaryOutcome>,
  ): Promise<SecondaryOutcome | AgentOutcome> {
    for (;;) {
      const outcome = await this.#runAsPrimary(successor);
      if (outcome !== null) {
        this.#secondary.stop();
        await standby;
        return outcome;
      }
      const ended = await Promise.race([standby, passed(RETRY_MS)]);
      if (ended !== null) return ended;
    }
  }

  /** Null, with the reason in #trouble, when the VM may be tried again. */
  async #runAsPrimary(successor: Successor): Promise<AgentOutcome | null> {
    const { undisputed } = this.#secondary;
    try {
      this.#primary = await PrimaryAgent.attach({
        ...successor(),
        tookOver: undisputed,
        forced: !undisputed,
      });
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

async function passed(ms: number): Promise<null> {
  await new Promise((resolve) => setTimeout(resolve, ms).unref());
  return null;
}
