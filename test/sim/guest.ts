/** A model VM: some pages of RAM, a disk, a device state, and frames that tell how far it was when it sent them. */
import { BLOCKS } from './disks.ts';
import { violated, type World } from './world.ts';

export const PAGES = 12;

export interface Snapshot {
  ram: readonly number[];
  disk: readonly number[];
  device: number;
}

export class Guest {
  readonly ram: number[] = new Array(PAGES).fill(0);
  readonly disk: number[];
  /** Counts the guest's steps: a state is newer than another exactly when this is higher. */
  device = 0;
  running = false;
  alive = true;
  shutDown = false;
  /** Handed over: it runs elsewhere. */
  left = false;
  /** The tracker: pages written since they were last collected. */
  dirty = new Set<number>();
  /** What lies between the guest and its disk; it is called before the guest learns that a write is done. */
  onDiskWrite: (block: number, value: number) => void = () => {};
  /** Where a frame goes. */
  onFrame: (device: number) => void = () => {};
  private readonly world: World;

  constructor(world: World, disk: number[] = new Array(BLOCKS).fill(0)) {
    this.world = world;
    this.disk = disk;
    this.schedule();
  }

  snapshot(): Snapshot {
    return { ram: [...this.ram], disk: [...this.disk], device: this.device };
  }

  write(page: number, value: number): void {
    this.ram[page] = value;
    this.dirty.add(page);
  }

  die(): void {
    this.alive = false;
    this.running = false;
  }

  private schedule(): void {
    this.world.clock.after(this.world.random.between(1, 12), () => {
      if (!this.alive) return;
      if (this.running) this.stepOnce();
      this.schedule();
    });
  }

  private writeDisk(block: number, value: number): void {
    this.disk[block] = value;
    this.onDiskWrite(block, value);
  }

  private stepOnce(): void {
    const { random } = this.world;
    this.device++;
    for (let writes = random.below(3); writes >= 0; writes--) this.write(random.below(PAGES), this.device);
    if (random.chance(0.4)) this.writeDisk(random.below(BLOCKS), this.device);
    if (random.chance(0.5)) this.onFrame(this.device);
  }
}

/** The output gate under the primary's NIC, with the rules that native/core/output_gate.h asserts. */
export class Gate {
  private readonly world: World;
  private holding = false;
  private sealed = 0;
  private released = 0;
  private held: { epoch: number; device: number }[] = [];
  private told = false;
  /** The process that reads the frames is dead: they go nowhere. */
  dead = false;
  onHeld: () => void = () => {};

  constructor(world: World) {
    this.world = world;
  }

  get passes(): boolean {
    return !this.holding && !this.dead;
  }

  frame(device: number): void {
    if (this.dead) return;
    if (!this.holding) {
      this.world.leaveUnprotected(device);
      return;
    }
    this.held.push({ epoch: this.sealed + 1, device });
    if (!this.told) this.onHeld();
    this.told = true;
  }

  seal(epoch: number): void {
    const again = epoch === this.sealed && epoch > this.released;
    if (this.holding && epoch !== this.sealed + 1 && !again)
      violated(1, `seal ${epoch} after ${this.sealed}`);
    if (again) for (const frame of this.held) frame.epoch = Math.min(frame.epoch, epoch);
    this.holding = true;
    this.sealed = epoch;
    this.told = false;
  }

  release(epoch: number): void {
    if (epoch > this.sealed) violated(1, `release ${epoch}, sealed ${this.sealed}`);
    this.released = epoch;
    for (const frame of this.held.filter((held) => held.epoch <= epoch))
      this.world.leaveCommitted(frame.device);
    this.held = this.held.filter((held) => held.epoch > epoch);
  }

  open(): void {
    for (const frame of this.held) this.world.leaveUnprotected(frame.device);
    this.held = [];
    this.holding = false;
  }
}
