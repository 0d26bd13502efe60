/** The shells of both machines for the model's steps: only what the model has a step for is waited for. */
import type {
  PrimaryEffect,
  PrimaryEvent,
  SecondaryEffect,
  SecondaryEvent,
} from '../../src/protocol/machine.ts';
import { PrimaryMachine } from '../../src/protocol/primary.ts';
import { SecondaryMachine } from '../../src/protocol/secondary.ts';
import { differ, type HostState, ModelAgent, NODES, type Surroundings, TIMINGS } from './model-host.ts';

const VM_ID = 'ab'.repeat(16);
const BYTES = 1000;

export class ModelPrimary extends ModelAgent<PrimaryEvent, PrimaryEffect> {
  connecting = false;
  synced = false;
  /** The VM is to be stopped for it, and nobody has answered. */
  stopDue: number | null = null;
  /** The VM is to be brought to a stand, and nobody has answered. */
  standDue = false;
  private drilling = false;
  /** The model's number of an epoch that has been sent, by the session's. */
  private sent = new Map<number, number>();
  private readonly onOutput: (epoch: number) => void;

  /** `onOutput`: output of that epoch has left. */
  constructor(side: 0 | 1, host: HostState, world: Surroundings, onOutput: (epoch: number) => void) {
    const machine = new PrimaryMachine({
      vmId: VM_ID,
      mode: 'pipelined',
      connections: 1,
      description: {},
      copiesDisks: false,
      generation: host.recorded,
      node: NODES[side],
      arbitration: 'witness',
      timings: TIMINGS,
      foundClosedGate: host.gate === 'closed',
      tookOver: false,
      forced: false,
      tookPart: false,
    });
    super(side, machine, host, world);
    this.onOutput = onOutput;
    this.step({ type: 'start' });
    if (host.vm === 'stands') this.step({ type: 'vm-paused' });
  }

  begin(): void {
    this.synced = false;
    this.sent.clear();
    this.connecting = false;
    this.step({ type: 'peer-connected', lineage: this.world.newId() });
  }

  /** The VM is stopped, captured and sent. */
  stopVm(): void {
    const epoch = this.stopDue;
    if (epoch === null) differ('no checkpoint is due');
    this.stopDue = null;
    this.step({ type: 'stopped', epoch, wasRunning: true });
    this.step({ type: 'saved', epoch, vmstateBytes: BYTES });
  }

  /** What is left of the model's step is one checkpoint more, whose output it doesn't count. */
  beginDrill(): void {
    this.drilling = true;
    this.step({ type: 'command', command: 'drill' });
  }

  stand(): void {
    this.standDue = false;
    this.host.vm = 'stands';
    this.step({ type: 'stood', wasRunning: true });
  }

  /** A person lets a VM go on that the agent before this one has handed over. */
  letGoOn(): void {
    this.host.vm = 'runs';
    this.step({ type: 'vm-resumed' });
  }

  protected perform(effect: PrimaryEffect): void {
    const { host } = this;
    switch (effect.type) {
      case 'claim':
        this.claim(effect.claim);
        break;
      case 'connect':
        this.connecting = true;
        break;
      case 'disconnect':
        this.connecting = false;
        this.world.unlink(this.side);
        break;
      case 'send':
        this.world.send(this.side, effect.message);
        break;
      case 'connect-bulk':
        this.step({ type: 'bulk-connected' });
        break;
      case 'install-gate':
        host.filters = true;
        this.step({ type: 'gate-installed' });
        break;
      case 'hand-over':
        host.filters = false;
        host.gate = 'open';
        this.step({ type: 'handed-over' });
        break;
      case 'protect':
        this.step({ type: 'protected' });
        break;
      case 'sync':
        this.synced = true;
        this.step({ type: 'synced' });
        break;
      case 'stop-and-save':
        this.stopDue = effect.epoch;
        break;
      case 'capture':
        host.gate = 'holds';
        this.sent.set(effect.epoch, this.drilling ? 0 : host.epoch++);
        this.step({ type: 'captured', epoch: effect.epoch, pages: 1 });
        break;
      case 'stand-still':
        this.standDue = true;
        break;
      case 'resume':
        if (host.vm === 'stands') host.vm = 'runs';
        this.step({ type: 'resumed' });
        break;
      case 'transmit':
        this.step({ type: 'transmitted', epoch: effect.epoch });
        break;
      case 'release-output':
        this.onOutput(this.sent.get(effect.epoch) ?? differ(`epoch ${effect.epoch} was never sent`));
        break;
      case 'quit-vm':
      case 'leave-vm':
        Object.assign(host, { vm: 'none', gate: 'closed', filters: false });
        break;
      case 'drilled':
      case 'sync-disks':
      case 'finished':
      case 'disconnect-bulk':
      case 'abandon':
      case 'confirm-disks':
      case 'state':
        break;
    }
  }
}

export class ModelSecondary extends ModelAgent<SecondaryEvent, SecondaryEffect> {
  /** A take-over's last step before its claim, and nobody has answered. */
  settleDue = false;
  private readonly standby: SecondaryMachine;

  constructor(side: 0 | 1, host: HostState, world: Surroundings) {
    const machine = new SecondaryMachine({
      vmId: VM_ID,
      generation: host.recorded,
      node: NODES[side],
      failover: 'claimed',
      timings: TIMINGS,
    });
    super(side, machine, host, world);
    this.standby = machine;
    this.step({ type: 'start' });
  }

  get holds(): boolean {
    return this.standby.epoch > 0;
  }

  /** Its disks are synced, or aren't. */
  settle(answer: 'disks-settled' | 'settle-failed'): void {
    if (!this.settleDue) return;
    this.settleDue = false;
    this.step({ type: answer, reason: 'a disk has lost a write' });
  }

  stage(epoch: number): void {
    this.step({ type: 'staged', epoch, pages: epoch === 0 ? 0 : 1, vmstateBytes: epoch === 0 ? 0 : BYTES });
  }

  protected perform(effect: SecondaryEffect): void {
    const { host } = this;
    switch (effect.type) {
      case 'send':
        this.world.send(this.side, effect.message);
        break;
      case 'disconnect':
        this.world.unlink(this.side);
        break;
      case 'claim':
        this.claim(effect.claim);
        break;
      case 'withdraw-claim':
        this.withdraw();
        break;
      case 'read-record':
        this.step({ type: 'record-read', record: this.world.witness.entry.record });
        break;
      case 'compare':
        host.recorded = Math.max(host.recorded, effect.generation);
        this.step({ type: 'compared', difference: null });
        break;
      case 'open-session':
        this.step({ type: 'session-opened', bulkToken: this.world.newId(), lineages: [] });
        break;
      case 'flush':
        this.step({ type: 'flushed', epoch: effect.epoch });
        break;
      case 'load':
        this.step({ type: 'loaded', epoch: effect.epoch });
        break;
      case 'settle-disks':
        this.settleDue = true;
        break;
      case 'promote':
        host.recorded = Math.max(host.recorded, effect.generation);
        Object.assign(host, { vm: 'runs', gate: 'open' });
        this.step({ type: 'promoted' });
        break;
      case 'quit-vm':
        host.vm = 'none';
        break;
      case 'finished':
      case 'skip-fence':
      case 'open-epoch':
      case 'close-session':
      case 'state':
        break;
    }
  }
}
