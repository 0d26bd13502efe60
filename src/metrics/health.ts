/** Whether every VM is protected as it should be, for a load balancer or a monitor (docs/metrics.md). */
import type { Readings, VmWord } from './readings.ts';

/**
 * The standby's side counts as much as the primary's. A VM that is just being copied, taken over, or runs alone is not protected, however well it does; and an agent
 * that says nothing says nothing good.
 */
const HEALTHY: readonly VmWord[] = ['PROTECTED', 'STANDBY'];

/** Scripts rely on these names. */
export interface Health {
  healthy: boolean;
  vms: {
    vm: string;
    healthy: boolean;
    /** Null: nobody knows. */
    role: 'primary' | 'secondary' | null;
    /** Null: its agent runs, and doesn't answer. */
    state: VmWord | null;
    reason: string;
  }[];
}

export function healthOf(readings: Readings): Health {
  const vms = [...readings].map(([vm, reading]) => {
    if ('failure' in reading) {
      const { role, state } = reading.resting ?? { role: null, state: null };
      return { vm, healthy: false, role, state, reason: reading.failure };
    }
    const { role, state, reason } = reading.status;
    return { vm, healthy: HEALTHY.includes(state), role, state, reason };
  });
  return { healthy: vms.every(({ healthy }) => healthy), vms };
}
