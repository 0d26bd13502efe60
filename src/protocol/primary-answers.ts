import type { PrimaryEvent, PrimaryStep } from './machine.ts';

type Answer = Extract<
  PrimaryEvent['type'],
  'gate-installed' | 'disks-synced' | 'protected' | 'bulk-connected' | 'synced' | 'transmitted'
>;

/** The step that an answer ends. */
export const STEP_OF = {
  'gate-installed': 'gate',
  'disks-synced': 'disks',
  protected: 'protect',
  'bulk-connected': 'bulk',
  synced: 'sync',
  transmitted: 'transmit',
} as const satisfies Record<Answer, string>;

/** See `step-failed`. */
export const MAY_FAIL_UNASKED: ReadonlySet<PrimaryStep> = new Set(['gate', 'disks', 'resume']);
