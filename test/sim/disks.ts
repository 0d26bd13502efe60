/** A model disk on each side: what the guest writes by epoch, as native/core/disk_log.h keeps it, and the standby's disk with its record. */
import { violated } from './world.ts';

/** So many that the guest leaves some alone while a standby is away. */
export const BLOCKS = 60;

export type DiskWrite = [block: number, value: number];

/** The primary's log of one disk. INVARIANT 3: what isn't confirmed when a session ends differs again. */
export class DiskLog {
  private readonly source: number[];
  private differs = new Set(Array.from({ length: BLOCKS }, (_, block) => block));
  private running: DiskWrite[] = [];
  private sealed: { epoch: number; writes: DiskWrite[] } | null = null;
  private unconfirmed: { epoch: number; block: number }[] = [];
  session = false;

  constructor(source: number[]) {
    this.source = source;
  }

  /** The source has been written already. Blocks that are still to be copied aren't logged: the copy will find the write. */
  write(block: number, value: number): void {
    if (this.session && !this.differs.has(block)) this.running.push([block, value]);
    else this.differs.add(block);
  }

  begin(allDiffer: boolean): void {
    this.session = true;
    if (allDiffer) for (let block = 0; block < BLOCKS; block++) this.differs.add(block);
  }

  /** Takes a block out BEFORE it is read. */
  nextDiffering(): number | null {
    const [block] = this.differs;
    if (block === undefined) return null;
    this.differs.delete(block);
    this.unconfirmed.push({ epoch: 0, block });
    return block;
  }

  read(block: number): number {
    return this.source[block] as number;
  }

  takeFirstCopyWrites(): DiskWrite[] {
    return this.sent(0, this.running.splice(0));
  }

  seal(epoch: number): void {
    this.sealed = { epoch, writes: [...(this.sealed?.writes ?? []), ...this.running.splice(0)] };
  }

  unseal(): void {
    this.running.unshift(...(this.sealed?.writes ?? []));
    this.sealed = null;
  }

  /** Null when the session has ended meanwhile. */
  takeSealed(epoch: number): DiskWrite[] | null {
    if (!this.session) return null;
    const { sealed } = this;
    if (sealed?.epoch !== epoch)
      violated(3, `disk writes of epoch ${epoch} sent, sealed is ${sealed?.epoch}`);
    this.sealed = null;
    return this.sent(epoch, sealed.writes);
  }

  confirm(epoch: number): void {
    this.unconfirmed = this.unconfirmed.filter((sent) => sent.epoch > epoch);
  }

  end(): void {
    this.session = false;
    const lost = [...this.running.splice(0), ...(this.sealed?.writes ?? [])].map(([block]) => block);
    for (const block of [...lost, ...this.unconfirmed.map((sent) => sent.block)]) this.differs.add(block);
    this.sealed = null;
    this.unconfirmed = [];
  }

  private sent(epoch: number, writes: DiskWrite[]): DiskWrite[] {
    for (const [block] of writes) this.unconfirmed.push({ epoch, block });
    return writes;
  }
}

/** A file on the standby's host: it outlives the agent and QEMU; a crash of the host loses what wasn't synced. */
export class StandbyDisk {
  readonly blocks: number[] = new Array(BLOCKS).fill(-1);
  /** From its record; null where nothing is known. */
  lineage: string | null = null;

  /** Told by the sync of a take-over; the record says so. */
  writeLost(block: number): void {
    this.blocks[block] = -3;
    this.lineage = null;
  }

  hostCrashed(): void {
    this.blocks.fill(-2);
    this.lineage = null;
  }
}
