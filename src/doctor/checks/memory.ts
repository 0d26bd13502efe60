import { stagingLimitBytes } from '../../agent/standby-vm.ts';
import { copiedDisks, findDisks } from '../../vm/disks.ts';
import { type Check, fail, ok, warn } from '../finding.ts';
import { availableMemory } from './host.ts';

const MIB = 1024 * 1024;
/** What an agent needs besides: Node.js, buffers, and the staging that stays resident. */
const AGENT_BYTES = 192 * MIB;

export const memory: Check = {
  name: 'memory',
  title: 'memory for the agent on this host',
  fault: 'configuration',
  async run(patient) {
    const { shadow, gateLimitBytes, diskBufferBytes, exceptions } = patient.options;
    const { qmp } = await patient.vm();
    const blocks = await patient.knownBlocks();
    const ramBytes = blocks.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    const logBytes = copiedDisks(await findDisks(qmp), exceptions).length * diskBufferBytes;
    const available = availableMemory();
    const there = `${available.limit} has ${mib(available.bytes)} left`;
    if ((await patient.role()) === 'secondary') {
      const needed = AGENT_BYTES + stagingLimitBytes(blocks, logBytes);
      const found = `a standby of ${mib(ramBytes)} stages at most ${mib(needed)}; ${there}`;
      return needed <= available.bytes
        ? ok(found)
        : warn(found, 'have more memory free for the first copy, or keep the guest from writing so much');
    }
    const needed = AGENT_BYTES + gateLimitBytes + logBytes + (shadow ? ramBytes : 0);
    const what = shadow ? `the shadow of ${mib(ramBytes)} of guest RAM and the buffers` : 'the buffers';
    const found = `${what} need ${mib(needed)}; ${there}`;
    if (needed <= available.bytes) return ok(found);
    const remedy = shadow ? 'free so much, or do without the shadow: --no-shadow' : 'free so much';
    return fail(found, remedy);
  },
};

function mib(bytes: number): string {
  return `${Math.ceil(bytes / MIB)} MiB`;
}
