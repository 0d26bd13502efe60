/** Whether a VM runs, asked past its agent. */
import { QmpClient } from '../../../src/qmp/client.ts';
import type { TestVm } from '../../../src/testbed/vm.ts';
import { waitFor } from '../../../src/testbed/wait.ts';

/** False also in the pause of a checkpoint. */
export async function runsNow(vm: TestVm): Promise<boolean> {
  const monitor = await QmpClient.connect(vm.testQmpPath);
  try {
    return (await monitor.execute('query-status')).running;
  } finally {
    monitor.close();
  }
}

/** Of a protected VM: it goes on after each checkpoint. */
export async function waitRuns(vm: TestVm): Promise<void> {
  await waitFor('VM that runs', 60_000, () => runsNow(vm));
}
