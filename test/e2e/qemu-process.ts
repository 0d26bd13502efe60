/** A bare QEMU with a QMP socket, for the tests of src/qmp and src/vm: most of them need no guest. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { QmpClient } from '../../src/qmp/client.ts';

export const QEMU = process.env['COLO_QEMU'] ?? 'qemu-system-x86_64';

/** The file is there a moment before QEMU listens; proc(5): flag 10000 in /proc/net/unix is a socket that listens. */
function isListening(socketPath: string): boolean {
  const lines = readFileSync('/proc/net/unix', 'utf8').split('\n');
  return lines.some((line) => line.endsWith(` ${socketPath}`) && line.split(' ')[3] === '00010000');
}

export class QemuProcess {
  readonly folder: string;
  readonly child: ChildProcess;
  readonly #stderr: string[] = [];

  /** Starts QEMU and returns when its QMP socket is there. Ends the test with QEMU's own words when it doesn't come up. */
  static async start(...args: string[]): Promise<QemuProcess> {
    const qemu = new QemuProcess(args);
    while (!isListening(qemu.qmpPath)) {
      if (qemu.child.exitCode !== null) throw new Error(`QEMU ended: ${qemu.stderr()}`);
      await delay(20);
    }
    return qemu;
  }

  private constructor(args: string[]) {
    this.folder = mkdtempSync(path.join(tmpdir(), 'colo-qemu-'));
    const fixed = ['-display', 'none', '-monitor', 'none', '-parallel', 'none', '-nodefaults'];
    this.child = spawn(QEMU, [...fixed, '-qmp', `unix:${this.qmpPath},server=on,wait=off`, ...args], {
      stdio: ['ignore', 'ignore', 'pipe'],
      cwd: this.folder,
    });
    this.child.stderr?.on('data', (chunk) => this.#stderr.push(String(chunk)));
  }

  get qmpPath(): string {
    return path.join(this.folder, 'qmp');
  }

  get pid(): number {
    return this.child.pid as number;
  }

  stderr(): string {
    return this.#stderr.join('');
  }

  connect(): Promise<QmpClient> {
    return QmpClient.connect(this.qmpPath);
  }

  async stop(): Promise<void> {
    if (this.child.exitCode === null && this.child.signalCode === null) {
      this.child.kill('SIGKILL');
      await once(this.child, 'exit');
    }
    rmSync(this.folder, { recursive: true, force: true });
  }
}
