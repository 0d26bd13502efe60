/** The guest's counter as its one client sees it (StreamClient). */
import { expect } from 'vitest';
import type { StreamClient } from '../../../src/testbed/client.ts';
import { monotonicMs } from '../../../src/testbed/wait.ts';

/** Waits for what comes from now on: the stream still has neither gap nor regression, on the connection that it began with. */
export async function goesOn(client: StreamClient): Promise<void> {
  await client.waitAfter(monotonicMs(), 60_000);
  expect(client.check).toMatchObject({ gaps: 0, regressions: 0 });
  expect(client.ended).toBeUndefined();
}
