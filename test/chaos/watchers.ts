/** Two who only look: at the frames of the guest on its bridge, and at the VM's record in etcd. */
import path from 'node:path';
import { createInterface } from 'node:readline';
import { parseRecord, type VmRecord } from '../../src/protocol/arbiter.ts';
import { Child } from '../../src/testbed/child.ts';
import type { TestNetwork } from '../../src/testbed/network.ts';
import { waitFor } from '../../src/testbed/wait.ts';
import { compile } from './compile.ts';
import type { Burst } from './one-runner.ts';

/** Of the first NIC of every test VM (src/testbed/vm.ts). */
const GUEST_MAC = '52:54:00:77:00:02';

export class FrameWatch {
  readonly #child: Child;

  private constructor(child: Child) {
    this.#child = child;
  }

  /** Compiles sniffer.c into `folder`. Resolves when it listens; `onBurst` gets what comes, in order. */
  static async start(
    network: TestNetwork,
    folder: string,
    onBurst: (burst: Burst) => void,
  ): Promise<FrameWatch> {
    const program = path.join(folder, 'sniffer');
    await compile('sniffer.c', program);
    const child = await Child.start([program, GUEST_MAC], {
      stderrPath: path.join(folder, 'sniffer.log'),
      prefix: network.prefix,
      pipes: true,
    });
    let listens = false;
    createInterface({ input: child.stdout }).on('line', (line) => {
      if (line === 'ready') listens = true;
      else onBurst(parseBurst(line));
    });
    await waitFor('sniffer', 10_000, () => {
      child.assertRunning();
      return listens;
    });
    return new FrameWatch(child);
  }

  assertRunning(): void {
    this.#child.assertRunning();
  }

  async destroy(): Promise<void> {
    await this.#child.stop();
  }
}

function parseBurst(line: string): Burst {
  const [tap = '', firstUs, lastUs, frames] = line.split(' ');
  return { tap, firstMs: Number(firstUs) / 1000, lastMs: Number(lastUs) / 1000, frames: Number(frames) };
}

/** Every record that the VM has had at the witness. */
export class RecordWatch {
  readonly history: VmRecord[] = [];
  readonly #child: Child;

  private constructor(child: Child) {
    this.#child = child;
    createInterface({ input: child.stdout }).on('line', (line) => this.history.push(parseRecord(line)));
  }

  /** `prefix`: of etcd's host, where `endpoints` are. */
  static async start(
    prefix: string[],
    endpoints: string[],
    key: string,
    folder: string,
  ): Promise<RecordWatch> {
    const script = path.join(import.meta.dirname, 'record-watch.mjs');
    const stderrPath = path.join(folder, 'record-watch.log');
    const command = [process.execPath, script, key, ...endpoints];
    return new RecordWatch(await Child.start(command, { stderrPath, prefix, pipes: true }));
  }

  get last(): VmRecord | undefined {
    return this.history.at(-1);
  }

  assertRunning(): void {
    this.#child.assertRunning();
  }

  async destroy(): Promise<void> {
    await this.#child.stop();
  }
}
