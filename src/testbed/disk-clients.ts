/** Clients of the guest's programs that use its disks. */
import { OPEN_TIMEOUT_MS, PORTS, request } from './client.ts';
import { GUEST_ADDRESS, type TestNetwork } from './network.ts';
import { Relay } from './relay.ts';
import { waitFor } from './wait.ts';

export interface DiskCheck {
  /** How often memory and disks were compared. */
  steps: number;
  /** How often the guest wrote since it was booted. */
  writes: number;
  /** How often a sector was not what memory says, and the first of them in the guest's own words. */
  mismatches: number;
  firstMismatch: string;
}

/** Has the guest read all of its disks now. */
export async function readDisks(network: TestNetwork, timeoutMs: number): Promise<DiskCheck> {
  const answer = await request(network, PORTS.diskcheck, '', timeoutMs);
  const [, steps, writes, mismatches, firstMismatch = ''] =
    /^steps=(\d+) writes=(\d+) mismatches=(\d+)(?: (.*))?$/.exec(answer) ?? [];
  if (steps === undefined) throw new Error(`diskcheck: ${answer}`);
  return {
    steps: Number(steps),
    writes: Number(writes),
    mismatches: Number(mismatches),
    firstMismatch,
  };
}

/** As readDisks. Rejects with the guest's own words when the disks aren't what its memory says. */
export async function checkDisks(network: TestNetwork, timeoutMs: number): Promise<DiskCheck> {
  const check = await readDisks(network, timeoutMs);
  if (check.mismatches > 0) throw new Error(`diskcheck: ${check.firstMismatch}`);
  return check;
}

/** A client of the guest's database that inserts 1, 2, 3, ..., each when the one before has been acknowledged. */
export class DatabaseClient {
  readonly #network: TestNetwork;
  /** Set as soon as it stands, before anything is sent. */
  #relay!: Relay;
  #partial = '';
  #acknowledged = 0;

  private constructor(network: TestNetwork) {
    this.#network = network;
  }

  /** Begins to insert at once; the database is empty. */
  static async connect(network: TestNetwork): Promise<DatabaseClient> {
    const client = new DatabaseClient(network);
    const target = ['tcp', GUEST_ADDRESS, String(PORTS.sqld)];
    client.#relay = await Relay.open(network, target, OPEN_TIMEOUT_MS, (text) => client.#receive(text));
    client.#putNext();
    return client;
  }

  /** The highest row that the guest said was committed; all below it were, too. */
  get acknowledged(): number {
    return this.#acknowledged;
  }

  /** Resolves when `more` further rows have been acknowledged. Rejects when the connection ends or the guest says anything else. */
  async waitAcknowledged(more: number, timeoutMs: number): Promise<void> {
    const target = this.#acknowledged + more;
    await waitFor(
      `acknowledgement of row ${target}`,
      timeoutMs,
      () => {
        if (this.#acknowledged >= target) return true;
        this.#relay.assertOpen();
        return false;
      },
      () => `; the last is that of row ${this.#acknowledged}`,
    );
  }

  /**
   * Has SQLite check the database. Rejects unless it is clean and holds every row that was acknowledged, none twice and none left out. One row
   * more may be there, whose acknowledgement is under way; resolves with their number.
   */
  async check(timeoutMs: number): Promise<number> {
    const acknowledgedBefore = this.#acknowledged;
    const answer = await request(this.#network, PORTS.sqld, 'check\n', timeoutMs);
    const [, count, highest] = /^clean (\d+) (\d+)$/.exec(answer) ?? [];
    if (count === undefined) throw new Error(`the database: ${answer}`);
    if (count !== highest || Number(count) < acknowledgedBefore) {
      throw new Error(`${count} rows up to ${highest}, ${acknowledgedBefore} were acknowledged`);
    }
    return Number(count);
  }

  async destroy(): Promise<void> {
    await this.#relay.destroy();
  }

  #putNext(): void {
    this.#relay.send({ text: `put ${this.#acknowledged + 1}\n` });
  }

  #receive(text: string): void {
    const lines = (this.#partial + text).split('\n');
    this.#partial = lines.pop() ?? '';
    for (const line of lines) {
      if (line !== `ok ${this.#acknowledged + 1}`) {
        throw new Error(`row ${this.#acknowledged + 1} was answered by ${JSON.stringify(line)}`);
      }
      this.#acknowledged++;
      this.#putNext();
    }
  }
}

export interface DiskBench {
  iops: number;
  p50Us: number;
  p99Us: number;
}

/** Has the guest write `writes` blocks of 4 KiB at random places of its first disk, `depth` of them in flight; figures by the guest's clock. */
export async function benchDisk(
  network: TestNetwork,
  depth: number,
  writes: number,
  timeoutMs: number,
): Promise<DiskBench> {
  const answer = await request(network, PORTS.diskbench, `${depth} ${writes}\n`, timeoutMs);
  const [, iops, p50Us, p99Us] = / iops=(\d+) p50_us=(\d+) p99_us=(\d+)$/.exec(answer) ?? [];
  if (iops === undefined) throw new Error(`diskbench: ${answer}`);
  return { iops: Number(iops), p50Us: Number(p50Us), p99Us: Number(p99Us) };
}
