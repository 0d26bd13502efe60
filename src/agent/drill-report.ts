/** A planned failover in figures: what was when, from what the primary sees of it and from what the standby says. */
import type { PrimaryEffect, PrimaryEvent } from '../protocol/machine.ts';
import type { Body } from '../protocol/messages.ts';

/** Milliseconds after the drill was asked for; null: it never came to it, or nobody knows. Scripts rely on these names. */
export interface DrillTimes {
  /** `stop` of the last checkpoint was asked for. */
  lastCheckpoint: number | null;
  /** The guest stood: the state with which it goes on elsewhere. */
  stopped: number | null;
  /** All of the checkpoint has been sent; the standby has it whole; it has loaded it. */
  transferred: number | null;
  received: number | null;
  loaded: number | null;
  /** The VM stands here for good, and the standby has been told to run it. */
  handedOver: number | null;
  /** There: its disks are synced; the witness has given it the VM. */
  disksSynced: number | null;
  claimed: number | null;
  /** There: the guest runs, and its network is open. */
  runs: number | null;
}

export interface DrillReport {
  vm: string;
  /** Where the VM runs now, by the name that this host has for itself. */
  node: string;
  generation: number;
  epoch: number;
  /** From `stopped` to `runs`: what a client waits. */
  outageMs: number;
  times: DrillTimes;
}

const NEVER: DrillTimes = {
  lastCheckpoint: null,
  stopped: null,
  transferred: null,
  received: null,
  loaded: null,
  handedOver: null,
  disksSynced: null,
  claimed: null,
  runs: null,
};

type TookOver = Body & { type: 'took-over' };

/** Watches one drill, from the command to its end. */
export class DrillWatch {
  readonly #askedMs: number;
  readonly #times: DrillTimes = { ...NEVER };
  /** Of the newest checkpoint that was begun since: the last one of them is handed over. */
  #epoch = 0;
  #generation = 0;

  constructor(nowMs: number) {
    this.#askedMs = nowMs;
  }

  effect(effect: PrimaryEffect, nowMs: number): void {
    if (effect.type === 'stop-and-save') {
      this.#epoch = effect.epoch;
      this.#times.lastCheckpoint = nowMs - this.#askedMs;
    } else if (effect.type === 'send' && effect.message.body.type === 'handover') {
      this.#times.handedOver = nowMs - this.#askedMs;
    }
  }

  event(event: PrimaryEvent): void {
    const afterMs = event.nowMs - this.#askedMs;
    if (event.type === 'stopped') this.#times.stopped = afterMs;
    else if (event.type === 'transmitted' && event.epoch === this.#epoch) this.#times.transferred = afterMs;
    else if (event.type === 'message' && event.message.epoch === this.#epoch) {
      const { body, generation } = event.message;
      if (body.type === 'received') this.#times.received = afterMs;
      else if (body.type === 'loaded') this.#times.loaded = afterMs;
      else if (body.type === 'took-over') this.#tookOver(body, generation, afterMs);
    }
  }

  /** Of a drill that has succeeded. */
  report(vm: string, node: string): DrillReport {
    const { stopped, runs } = this.#times;
    const outageMs = (runs ?? 0) - (stopped ?? 0);
    return {
      vm,
      node,
      generation: this.#generation,
      epoch: this.#epoch,
      outageMs,
      times: { ...this.#times },
    };
  }

  /** The standby counts from when HANDOVER came: half of what is left of the time to its answer lies before. */
  #tookOver({ settledMs, claimedMs, runsMs }: TookOver, generation: number, afterMs: number): void {
    const handedOver = this.#times.handedOver ?? afterMs;
    const beganMs = handedOver + Math.max(0, afterMs - handedOver - runsMs) / 2;
    this.#generation = generation;
    this.#times.disksSynced = beganMs + settledMs;
    this.#times.claimed = claimedMs === null ? null : beganMs + claimedMs;
    this.#times.runs = beganMs + runsMs;
  }
}
