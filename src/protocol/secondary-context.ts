import type { SecondaryEffect, SecondaryOptions } from './machine.ts';
import type { Body } from './messages.ts';
import { Outstanding } from './outstanding.ts';
import { ShownState } from './shown-state.ts';

export type SecondaryStep =
  | 'read-record'
  | 'compare'
  | 'open-session'
  | 'flush'
  | 'load'
  | 'settle-disks'
  | 'promote';

/** What the parts of a secondary share: the event's time, the effects of this step, and the steps under way. */
export class SecondaryContext {
  readonly options: SecondaryOptions;
  readonly steps = new Outstanding<SecondaryStep>();
  readonly shown = new ShownState();
  /** The newest generation that was seen. */
  generation: number;
  nowMs = 0;
  private effects: SecondaryEffect[] = [];

  constructor(options: SecondaryOptions) {
    this.options = options;
    this.generation = options.generation;
  }

  emit(effect: SecondaryEffect): void {
    this.effects.push(effect);
  }

  send(body: Body, epoch = 0): void {
    const { vmId } = this.options;
    this.emit({ type: 'send', message: { vmId, generation: this.generation, epoch, body } });
  }

  takeEffects(): SecondaryEffect[] {
    const effects = this.effects;
    this.effects = [];
    return effects;
  }
}
