/** What the standby's VM is by now, and what makes it run: a take-over, begun by the primary's end, its silence or a person. It outlives every session. */
import type { ClaimEvent, Superseded } from './machine.ts';
import type { SecondaryContext } from './secondary-context.ts';
import type { Standby } from './standby.ts';
import { TakeOver } from './take-over.ts';

export class Life {
  /** Whether the VM is a standby, on its way to run, running, or in an unknown state because `cont` failed. */
  now: 'standby' | 'taking-over' | 'running' | 'unclear' = 'standby';
  /** A primary that lives has been given until then to come back, or to claim its next generation. */
  claimAtMs: number | null = null;
  private readonly context: SecondaryContext;
  private readonly standby: Standby;
  /** While the VM is taken over. */
  private takeOver: TakeOver | null = null;
  /** A person has decided in the witness's place: what it holds may say otherwise. */
  private overridden = false;
  /** What the witness said to it last. */
  private silence = 'it has not answered';

  constructor(context: SecondaryContext, standby: Standby) {
    this.context = context;
    this.standby = standby;
  }

  /** The VM runs in a generation that nobody else can have won. */
  get undisputed(): boolean {
    return this.now === 'running' && !this.overridden;
  }

  /** When it wants a tick at the latest. */
  get nextTimepointMs(): number | null {
    return this.claimAtMs ?? this.takeOver?.nextTimepointMs ?? null;
  }

  /** Why there is nothing to take over. */
  get refusal(): string {
    const { condemned } = this.standby;
    if (condemned === null) return 'there is no complete checkpoint to take over';
    return `RAM here is not the primary's (${condemned})`;
  }

  // --- what begins and ends a take-over --------------------------------------------------------------------------------------------

  /** `handedOver`: the primary has stopped its VM for it, and waits for the end of it. */
  begin(reason: string, force: boolean, handedOver = false): void {
    this.claimAtMs = null;
    if (this.standby.epoch === null) {
      this.context.shown.set('BLOCKED', `failover refused: ${this.refusal}`);
      return;
    }
    this.now = 'taking-over';
    this.takeOver = new TakeOver(this.context, this.standby, reason, handedOver);
    if (this.context.options.failover !== 'claimed') this.grant();
    else if (force) this.takeOver.force();
    this.context.shown.set('TAKING-OVER', `at epoch ${this.standby.epoch}: ${reason}`);
  }

  onCommand(force: boolean, connected: boolean): void {
    const { shown, options } = this.context;
    if (this.now === 'running') return;
    if (this.takeOver !== null) {
      this.hurry(this.takeOver, force);
    } else if (connected) {
      shown.set(shown.word, 'failover refused: the primary is connected');
    } else if (!force && this.standby.epoch !== null && options.failover === 'ordered') {
      const order = 'without a witness only `colo-agent failover --force NAME` promotes it';
      shown.set(shown.word, `failover refused: ${order}, when the primary is known not to run`);
    } else {
      this.begin('ordered by a person', force);
    }
  }

  private hurry(takeOver: TakeOver, force: boolean): void {
    if (takeOver.order(force))
      this.context.shown.set('TAKING-OVER', `at epoch ${this.standby.epoch}: ordered by a person`);
  }

  /** INVARIANT 4: a primary that comes back while the witness is silent has won a generation since, so our claim can only be lost. */
  mayYieldTo(generation: number): boolean {
    return this.takeOver?.mayYield === true && generation > this.standby.source.generation;
  }

  yieldToPrimary(): void {
    this.claimAtMs = null;
    if (this.takeOver === null) return;
    this.takeOver.withdraw();
    this.endTakeOver();
  }

  // --- answers ---------------------------------------------------------------------------------------------------------------------

  onClaim(event: ClaimEvent): void {
    const { takeOver, standby } = this;
    const { shown } = this.context;
    if (this.overridden && event.kind === 'seize') {
      this.onSeizedLate(event);
      return;
    }
    // The last word on a claim that has been withdrawn may still be on its way.
    if (takeOver === null || !takeOver.undecided) return;
    if (event.type === 'claim-won') {
      takeOver.onWon(event.generation);
      shown.set('TAKING-OVER', `at epoch ${standby.epoch}: ${takeOver.reason}`);
    } else if (event.type === 'claim-unanswered' && event.kind === 'seize') {
      this.silence = event.reason;
    } else if (event.type === 'claim-unanswered') {
      const what = `can't take over at epoch ${standby.epoch} before the witness answers`;
      shown.set('BLOCKED', `${what}: ${event.reason} (${takeOver.reason})`);
    } else {
      this.endTakeOver();
      // INVARIANT 4: what the world has seen since is newer than this checkpoint.
      standby.discard();
      shown.set('STARTING', `waiting for a primary: ${event.reason}`);
    }
  }

  /** The witness knows at last of what a person has decided. */
  private onSeizedLate(event: ClaimEvent): void {
    if (event.type !== 'claim-won') return;
    this.overridden = false;
    this.standby.won = event.generation;
    if (this.now === 'running') this.onPromoted();
  }

  /** INVARIANT 4: of two that run the older generation ends. Whether this one does. */
  mustEnd({ generation }: Superseded): boolean {
    return this.now === 'running' && generation > this.context.generation;
  }

  onSettled(): void {
    this.takeOver?.onSettled();
  }

  /** A step has failed that has changed nothing, and may be tried again. */
  onPostponed(reason: string): void {
    if (this.takeOver !== null) this.context.shown.set('BLOCKED', this.takeOver.postpone(reason));
  }

  /** INVARIANT 2: a disk that has lost a write on its way to the medium can only be copied again, also where a primary has come back meanwhile. */
  onSettleFailed(reason: string): void {
    this.yieldToPrimary();
    this.standby.discard();
    this.context.shown.set('BLOCKED', `failover impossible: the disks could not be synced: ${reason}`);
  }

  onPromoted(): void {
    this.now = 'running';
    this.takeOver = null;
    this.context.generation = this.standby.won ?? this.context.generation;
    const unheard = `took over, by force; the witness does not know of it, and will be told: ${this.silence}`;
    this.context.shown.set('RUNNING', this.overridden ? unheard : 'took over');
  }

  onPromoteFailed(reason: string): void {
    this.now = 'unclear';
    this.takeOver = null;
    this.context.shown.set('BLOCKED', `the VM could not be started: ${reason}`);
  }

  // --- progress --------------------------------------------------------------------------------------------------------------------

  advance(connected: boolean): void {
    if (this.claimAtMs !== null && this.context.nowMs >= this.claimAtMs) {
      this.claimAtMs = null;
      if (!connected && this.now === 'standby') this.begin('the primary stays away', false);
    }
    if (this.takeOver?.unheard) this.grant();
    const impossible = this.takeOver?.advance() ?? null;
    if (impossible === null) return;
    this.yieldToPrimary();
    this.context.shown.set('BLOCKED', impossible);
  }

  /** Without the witness's word. */
  private grant(): void {
    this.overridden ||= this.context.options.failover === 'claimed';
    if (this.takeOver?.undecided) this.takeOver.onWon(this.context.generation + 1);
  }

  private endTakeOver(): void {
    this.takeOver = null;
    this.now = 'standby';
  }
}
