import type { PrimaryEffect, PrimaryOptions, PrimaryStep } from './machine.ts';
import type { Body } from './messages.ts';
import { Outstanding } from './outstanding.ts';

/** What the parts of a primary share: the event's time, the effects of this step, and the steps under way. */
export class PrimaryContext {
  readonly options: PrimaryOptions;
  readonly steps = new Outstanding<PrimaryStep | 'hand-over'>();
  generation: number;
  /** What an earlier agent left: output is cut off, and the peer may have taken over. Only READY or a person lets it be opened. */
  foreignGate: boolean;
  /**
   * INVARIANT 4: HANDOVER has been sent, and whether the standby runs the VM isn't known. Nobody resumes it here, nor opens its gate, until the standby has
   * said that it doesn't, or the witness that it can't, or a person knows.
   */
  handedOver = false;
  nowMs = 0;
  private effects: PrimaryEffect[] = [];

  constructor(options: PrimaryOptions) {
    this.options = options;
    this.generation = options.generation;
    this.foreignGate = options.foundClosedGate;
  }

  emit(effect: PrimaryEffect): void {
    this.effects.push(effect);
  }

  send(body: Body, epoch = 0): void {
    const { vmId } = this.options;
    this.emit({ type: 'send', message: { vmId, generation: this.generation, epoch, body } });
  }

  takeEffects(): PrimaryEffect[] {
    const effects = this.effects;
    this.effects = [];
    return effects;
  }
}
