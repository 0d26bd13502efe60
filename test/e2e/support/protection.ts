/** A protected VM on this machine: two QEMUs, two agents, and, when asked for, a network with a client's view. */
import { createServer } from 'node:net';
import { type AgentStatus, TestAgent } from '../../../src/testbed/agents.ts';
import type { Cleanup } from '../../../src/testbed/cleanup.ts';
import { type DiskOptions, standbyDisks } from '../../../src/testbed/disks.ts';
import { TestVm, type VmOptions } from '../../../src/testbed/vm.ts';

export const VM_NAME = 'e2e';
export const BOOT_MS = 120_000;
export const PROTECT_MS = 120_000;

/** Everything that must be the same for both VMs of a protection. */
export type GuestOptions = Omit<VmOptions, 'name' | 'paused' | 'nics'> & {
  /** With a network: 1 when it isn't said. */
  nicCount?: number;
};

export async function startVm(
  cleanup: Cleanup,
  name: string,
  options: GuestOptions,
  paused: boolean,
): Promise<TestVm> {
  const { network, nicCount = 1, ...vmOptions } = options;
  const nics: { tap: string }[] = [];
  while (network && nics.length < nicCount) {
    nics.push({ tap: await network.addTap(options.nobody ? { uid: 65534 } : {}) });
  }
  const vm = await TestVm.start({ ...vmOptions, name, paused, ...(network && { network, nics }) });
  return cleanup.own(vm);
}

/** The standby's VM: the same devices, its disks raw and, unless they are there already, new. `folder`: for images that outlive it. */
export function standbyOf(guest: GuestOptions, folder?: string): GuestOptions {
  return guest.disks ? { ...guest, disks: standbyDisks(guest.disks, folder) } : guest;
}

export function waitBooted(vm: TestVm, options: GuestOptions): Promise<string> {
  return vm.waitConsole(options.guest === 'linux' ? 'GUEST-READY' : 'ABCD', BOOT_MS);
}

export async function startSecondary(
  cleanup: Cleanup,
  vm: Pick<TestVm, 'qmpPath'>,
  args: string[] = [],
  listen = '127.0.0.1:0',
): Promise<{ agent: TestAgent; listen: string }> {
  const agent = cleanup.own(
    await TestAgent.start('secondary', [
      '--vm',
      VM_NAME,
      '--qmp',
      vm.qmpPath,
      '--listen',
      listen,
      '--log-level',
      'debug',
      ...args,
    ]),
  );
  return { agent, listen: String((await agent.status())['listen']) };
}

export async function startPrimary(
  cleanup: Cleanup,
  vm: Pick<TestVm, 'qmpPath'>,
  peer: string,
  args: string[] = [],
): Promise<TestAgent> {
  return cleanup.own(
    await TestAgent.start('primary', [
      '--vm',
      VM_NAME,
      '--qmp',
      vm.qmpPath,
      '--peer',
      peer,
      '--log-level',
      'debug',
      ...args,
    ]),
  );
}

export interface Protection {
  primaryVm: TestVm;
  standbyVm: TestVm;
  primary: TestAgent;
  secondary: TestAgent;
  listen: string;
}

export interface ProtectionOptions {
  guest: GuestOptions;
  /** Default: raw and new ones. */
  standbyDisks?: DiskOptions[];
  primaryArgs?: string[];
  secondaryArgs?: string[];
  /** What the primary is told to connect to, when it isn't the secondary itself. */
  via?: (listen: string) => Promise<string>;
}

/** Boots, attaches, and resolves when the first checkpoint is committed. */
export async function protect(cleanup: Cleanup, options: ProtectionOptions): Promise<Protection> {
  const primaryVm = await startVm(cleanup, 'primary', options.guest, false);
  await waitBooted(primaryVm, options.guest);
  const standby = {
    ...standbyOf(options.guest),
    ...(options.standbyDisks && { disks: options.standbyDisks }),
  };
  const standbyVm = await startVm(cleanup, 'standby', standby, true);
  const { agent: secondary, listen } = await startSecondary(cleanup, standbyVm, options.secondaryArgs);
  const peer = options.via ? await options.via(listen) : listen;
  const primary = await startPrimary(cleanup, primaryVm, peer, options.primaryArgs);
  await primary.waitState('PROTECTED', PROTECT_MS);
  return { primaryVm, standbyVm, primary, secondary, listen };
}

/** Waits until `more` further checkpoints have been committed. */
export async function moreCheckpoints(primary: TestAgent, more: number): Promise<AgentStatus> {
  const { epoch } = await primary.waitState('PROTECTED', PROTECT_MS);
  return primary.waitStatus(`epoch ${epoch + more}`, PROTECT_MS, (status) => status.epoch >= epoch + more);
}

/** A port that was free a moment ago: for a standby that must come back under the same address. */
export async function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.on('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const address = server.address();
      server.close(() => resolve(typeof address === 'object' && address ? address.port : 0));
    });
  });
}
