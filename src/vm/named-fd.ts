/** QEMU's named descriptors (`getfd`): a descriptor of ours under a name, which one command takes. */
import type { QmpClient } from '../qmp/client.ts';
import { QmpError } from '../qmp/error.ts';

/** Runs `use`, a command that takes the descriptor. When it fails, QEMU may still hold it: it is taken back, so that no attempt leaks one. */
export async function withNamedFd(
  qmp: QmpClient,
  fdname: string,
  fd: number,
  use: () => Promise<unknown>,
): Promise<void> {
  await qmp.execute('getfd', { fdname }, [fd]);
  try {
    await use();
  } catch (error) {
    await qmp.execute('closefd', { fdname }).catch((second) => {
      // Not found: the command had taken it before it failed.
      if (!(second instanceof QmpError)) throw second;
    });
    throw error;
  }
}
