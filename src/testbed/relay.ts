/** One socket inside a test's network namespace; it lives in a child process, client-main.ts. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { Child } from './child.ts';
import { packageRoot } from './guest.ts';
import type { TestNetwork } from './network.ts';
import { waitFor } from './wait.ts';

/** What client-main prints. `text` is Latin-1 data, or an error's message. */
export interface RelayEvent {
  type: 'open' | 'data' | 'end' | 'error';
  /** On monotonicMs's clock. */
  atMs: number;
  text: string;
}

/** What client-main reads; `host` and `port` are for UDP. */
export interface RelayRequest {
  text: string;
  host?: string;
  port?: number;
}

export type DataHandler = (text: string, atMs: number) => void;

export class Relay {
  readonly #child: Child;
  readonly #directory: string;
  #opened = false;
  #ended: string | undefined;

  private constructor(child: Child, directory: string, onData: DataHandler) {
    this.#child = child;
    this.#directory = directory;
    child.stdin.on('error', (error) => {
      this.#ended ??= error.message;
    });
    createInterface({ input: child.stdout }).on('line', (line) => {
      try {
        this.#handle(JSON.parse(line) as RelayEvent, onData);
      } catch (error) {
        this.#ended ??= String(error);
      }
    });
  }

  /**
   * Resolves when the TCP connection stands or the UDP port is bound. What `onData` throws counts as the end of the connection.
   * `target` is client-main's command line.
   */
  static async open(
    network: TestNetwork,
    target: string[],
    timeoutMs: number,
    onData: DataHandler,
  ): Promise<Relay> {
    const directory = mkdtempSync(path.join(tmpdir(), 'colo-client-'));
    const script = path.join(packageRoot, 'dist', 'testbed', 'client-main.js');
    const child = await Child.start([process.execPath, script, ...target], {
      stderrPath: path.join(directory, 'stderr'),
      prefix: network.prefix,
      pipes: true,
    });
    const relay = new Relay(child, directory, onData);
    try {
      await waitFor(`connection (${target.join(' ')})`, timeoutMs, () => {
        if (!relay.#opened) relay.assertOpen();
        return relay.#opened;
      });
    } catch (error) {
      await relay.destroy();
      throw error;
    }
    return relay;
  }

  /** Why nothing more will come; undefined while the connection lives. */
  get ended(): string | undefined {
    return this.#ended;
  }

  send(request: RelayRequest): void {
    this.#child.stdin.write(`${JSON.stringify(request)}\n`);
  }

  /** Throws, with the reason, when nothing more will come. */
  assertOpen(): void {
    this.#child.assertRunning();
    if (this.#ended !== undefined) throw new Error(`the connection is over: ${this.#ended}`);
  }

  async destroy(): Promise<void> {
    await this.#child.stop();
    rmSync(this.#directory, { recursive: true });
  }

  #handle(event: RelayEvent, onData: DataHandler): void {
    if (event.type === 'open') this.#opened = true;
    else if (event.type === 'data') onData(event.text, event.atMs);
    else this.#ended ??= event.type === 'end' ? 'closed by the other side' : event.text;
  }
}
