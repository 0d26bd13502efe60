/** To be called whenever a `cont` of ours has been answered: on the primary after each pause, on the standby after a take-over. */
import { native } from '../native/binding.ts';
import type { Log } from './log.ts';

/**
 * An interrupt of a disk with an iothread may have been lost in the stop (native/core/eventfd_kick.h), and the guest would wait for it for ever
 * (invariant 7). The VM runs whatever comes of this.
 */
export function wakeInterrupts(qemuPid: number, log: Log): void {
  try {
    native.kickEventfds(qemuPid);
  } catch (error) {
    log.error('QEMU could not be woken: a disk with an iothread may have to wait', {
      error: (error as Error).message,
    });
  }
}
