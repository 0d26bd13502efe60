/** What QEMU does when the guest shuts down: a protected VM must stand still then, so that a last checkpoint with the shutdown in it can be taken. */
import { readFileSync } from 'node:fs';
import type { QmpClient } from '../qmp/client.ts';
import { hasOption, optionValues, parseKeyValues } from './command-line.ts';

export class ShutdownAction {
  /** The user wants QEMU to outlive the guest's shutdown anyway; then there is nothing for us to change. */
  readonly pausesByUser: boolean;
  /** Null until we have set it: an agent that died may have left another than QEMU was started with. */
  #current: 'pause' | 'poweroff' | null = null;

  /** QMP can set the action but not tell it, so it is taken from QEMU's command line. */
  static of(pid: number): ShutdownAction {
    return new ShutdownAction(readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0'));
  }

  constructor(commandLine: readonly string[]) {
    const actions = optionValues(commandLine, 'action').map((value) =>
      parseKeyValues(value, '').get('shutdown'),
    );
    this.pausesByUser = hasOption(commandLine, 'no-shutdown') || actions.includes('pause');
  }

  /** True when QEMU outlives the guest's shutdown. */
  get paused(): boolean {
    return this.pausesByUser || this.#current === 'pause';
  }

  async pause(qmp: QmpClient): Promise<void> {
    await this.#set(qmp, 'pause');
  }

  async restore(qmp: QmpClient): Promise<void> {
    await this.#set(qmp, 'poweroff');
  }

  async #set(qmp: QmpClient, action: 'pause' | 'poweroff'): Promise<void> {
    if (this.pausesByUser || this.#current === action) return;
    await qmp.execute('set-action', { shutdown: action });
    this.#current = action;
  }
}
