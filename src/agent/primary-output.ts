/** What the guest sends to the world while it is protected: the gate under its NICs, and when its frames may leave. */
import { native, type OutputGate } from '../native/binding.ts';
import type { QmpClient } from '../qmp/client.ts';
import { type GateWiring, handOver, install, removeLeftovers } from '../vm/gate-wiring.ts';
import type { Nic } from '../vm/nics.ts';

export interface PrimaryOutputListener {
  onHeld(): void;
  onPressure(): void;
  onBroken(reason: string): void;
  onReleased(epoch: number): void;
}

export class PrimaryOutput {
  readonly #limitBytes: number;
  readonly #listener: PrimaryOutputListener;
  #gate: OutputGate | null = null;
  #wiring: GateWiring | null = null;
  /** Committed while the VM stood. */
  #releasable: number | null = null;

  constructor(limitBytes: number, listener: PrimaryOutputListener) {
    this.#limitBytes = limitBytes;
    this.#listener = listener;
  }

  /** For a capture to seal; null: there is none. */
  get gate(): OutputGate | null {
    return this.#gate;
  }

  stats(): { heldFrames: number; heldBytes: number; droppedFrames: number } {
    return this.#gate?.stats() ?? { heldFrames: 0, heldBytes: 0, droppedFrames: 0 };
  }

  async install(qmp: QmpClient, nics: readonly Nic[]): Promise<void> {
    await removeLeftovers(qmp);
    this.#gate = new native.OutputGate({
      limitBytes: this.#limitBytes,
      pressureBytes: Math.floor(this.#limitBytes * 0.75),
      onOutputHeld: () => this.#listener.onHeld(),
      onPressure: () => this.#listener.onPressure(),
      onBroken: (reason) => this.#listener.onBroken(reason),
    });
    this.#wiring = await install(qmp, nics, this.#gate);
  }

  /** QEMU's netdevs keep frames back while the VM stands, and drop all but 10,000 of them (net/queue.c): they wait for resumed(). */
  release(epoch: number, standing: boolean): void {
    this.#releasable = epoch;
    if (!standing) this.resumed();
  }

  resumed(): void {
    const epoch = this.#releasable;
    this.#releasable = null;
    if (epoch === null) return;
    this.#gate?.release(epoch);
    this.#listener.onReleased(epoch);
  }

  /** Gives the NICs back, if they were ours: see handOver() of gate-wiring. Returns whether there was a gate; it is closed then, also when this throws. */
  async handOver(qmp: QmpClient, standStill: () => Promise<unknown>): Promise<boolean> {
    const gate = this.#gate;
    const wiring = this.#wiring;
    this.#forget();
    try {
      if (gate && wiring) await handOver(qmp, wiring, gate, standStill);
    } finally {
      gate?.close();
    }
    return gate !== null && wiring !== null;
  }

  close(): void {
    this.#gate?.close();
    this.#forget();
  }

  #forget(): void {
    this.#gate = null;
    this.#wiring = null;
    this.#releasable = null;
  }
}
