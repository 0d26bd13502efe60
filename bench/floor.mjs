/**
 * What no checkpoint can be faster than: `stop`, `xen-save-devices-state` and `cont` of the same guest under the same load, issued as colo-agent issues
 * them, with nothing else; and a plain copy of as many pages as a checkpoint has.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { VmstateFile } from '../dist/vm/vmstate.js';
import { SyntheticGuest } from './synthetic.mjs';

const COPIES = 200;

/** The lengths of `count` pauses, one every `intervalMs`. The guest isn't protected. */
export async function floorPauses({ watch }, { count, intervalMs }) {
  const { monitor } = watch;
  const vmstate = await VmstateFile.attach(monitor);
  try {
    return await watch.during(async () => {
      for (let i = 0; i < count; i++) {
        const next = sleep(intervalMs);
        const stopping = monitor.execute('stop');
        const saving = vmstate.save(monitor);
        await stopping;
        await Promise.all([saving, monitor.execute('cont')]);
        await next;
      }
    });
  } finally {
    await vmstate.detach(monitor);
  }
}

/** The median time of a plain copy of `pages` random pages that have just been written, out of 256 MiB, by one thread. */
export async function plainCopyMs(cleanup, pages) {
  const guest = await SyntheticGuest.start(cleanup, 256);
  try {
    return (await guest.copyUs(Math.round(pages), COPIES)) / 1000;
  } finally {
    await guest.destroy();
  }
}
