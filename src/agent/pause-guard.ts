/**
 * Keeps a VM that this agent has stopped from standing for ever when the agent dies in the middle of its pause, by SIGKILL or a crash: a process of its own,
 * pause-guard-main, holds the same QMP connection and sends the `cont` that is missing (invariant 7). The VM is then where it would be if the agent had died
 * a moment later: it runs behind its closed gate.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeSync } from 'node:fs';
import path from 'node:path';
import type { Writable } from 'node:stream';
import { type MemoryFile, type NativeBinding, native as nativeBinding } from '../native/binding.ts';
import type { QmpClient } from '../qmp/client.ts';
import type { Log } from './log.ts';

type Services = Pick<NativeBinding, 'makeMemoryFile' | 'closeFd'>;

const STOPPED = Uint8Array.of(1);
const RUNS = Uint8Array.of(0);

export class PauseGuard {
  readonly #child: ChildProcess;
  /** One byte that both processes see: whether the VM stands because of us. */
  readonly #flag: MemoryFile;
  readonly #native: Services;
  #closing = false;

  /** Starts the guard of the VM behind `qmp`. Rejects when it can't be started. */
  static async start(qmp: QmpClient, log: Log, native: Services = nativeBinding): Promise<PauseGuard> {
    const flag = native.makeMemoryFile('colo-pause-guard');
    try {
      const main = path.join(import.meta.dirname, 'pause-guard-main.js');
      const child = spawn(process.execPath, [main, String(qmp.peer.pid)], {
        // Its standard input ends with this process, however that ends.
        stdio: ['pipe', 'ignore', 'inherit', flag.readWriteFd, qmp.fd],
        detached: true, // a terminal's Ctrl-C is for the agent
      });
      await once(child, 'spawn');
      return new PauseGuard(child, flag, log, native);
    } catch (error) {
      closeBoth(flag, native);
      throw error;
    }
  }

  private constructor(child: ChildProcess, flag: MemoryFile, log: Log, native: Services) {
    this.#child = child;
    this.#flag = flag;
    this.#native = native;
    child.unref();
    // A pipe is a socket in Node, whose type doesn't say so.
    (child.stdin as Writable & { unref(): void }).unref();
    child.stdin?.on('error', () => {}); // it has ended, which the next line reports
    child.once('exit', (code, signal) => {
      if (this.#closing) return;
      log.error(
        'the pause guard has ended: if this agent is killed in the middle of a pause, the VM will stand',
        {
          status: signal ?? code,
        },
      );
    });
  }

  /** To be set before `stop` is sent, and taken back after `cont` has been answered. Costs one system call. */
  setStopped(stopped: boolean): void {
    if (this.#closing) return; // the descriptor may be another's by now
    writeSync(this.#flag.readWriteFd, stopped ? STOPPED : RUNS, 0, 1, 0);
  }

  /** Resolves when the guard has ended: QEMU then sees this connection end together with ours. */
  async close(): Promise<void> {
    if (this.#closing) return;
    this.setStopped(false); // what is left to be done is the agent's, which lives; two must not read the connection
    this.#closing = true;
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      const exited = once(this.#child, 'exit');
      this.#child.ref();
      this.#child.stdin?.end();
      await exited;
    }
    closeBoth(this.#flag, this.#native);
  }
}

function closeBoth({ readWriteFd, writeOnlyFd }: MemoryFile, native: Services): void {
  native.closeFd(readWriteFd);
  native.closeFd(writeOnlyFd);
}
