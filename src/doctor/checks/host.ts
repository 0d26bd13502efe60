/** What this host's system offers. */
import { readFileSync } from 'node:fs';
import { arch, release } from 'node:os';
import { type Check, type Finding, fail, ok, warn } from '../finding.ts';

export const kernel: Check = {
  name: 'kernel',
  title: 'the kernel of this host',
  fault: 'configuration',
  run: async () => judgeKernel(release(), arch()),
};

/** `architecture`: as Node.js calls it. */
export function judgeKernel(version: string, architecture: string): Finding {
  const found = `Linux ${version}, ${architecture}`;
  if (architecture !== 'x64') return fail(found, 'colo-agent is for x86-64');
  const [major = 0, minor = 0] = version.split('.').map(Number);
  const atLeast = (wanted: number) => major > 6 || (major === 6 && minor >= wanted);
  if (!atLeast(7))
    return warn(
      `${found}: it can't tell which pages the guest has written`,
      'use Linux 6.9 or newer; until then all of RAM is compared in each pause, which takes longer',
    );
  return atLeast(9)
    ? ok(found)
    : warn(`${found}: it misses written pages in known cases`, 'use Linux 6.9 or newer');
}

export interface AvailableMemory {
  bytes: number;
  /** Who sets the limit. */
  limit: string;
}

/** What a process of this control group can still get. */
export function availableMemory(procFolder = '/proc', groupsFolder = '/sys/fs/cgroup'): AvailableMemory {
  const text = readFileSync(`${procFolder}/meminfo`, 'utf8');
  const bytes = Number(/^MemAvailable: *(\d+) kB$/m.exec(text)?.[1]) * 1024;
  const limits = [{ bytes, limit: 'this host' }, ...groupLimits(procFolder, groupsFolder)];
  return limits.reduce((least, each) => (each.bytes < least.bytes ? each : least));
}

/** Version 2 of control groups: a group's limit holds for all below it. */
function groupLimits(procFolder: string, groupsFolder: string): AvailableMemory[] {
  const group = /^0::(.*)$/m.exec(textOf(`${procFolder}/self/cgroup`))?.[1] ?? '/';
  const parts = group.split('/').filter(Boolean);
  return parts.flatMap((_, index) => {
    const name = `/${parts.slice(0, index + 1).join('/')}`;
    const number = (file: string) => Number.parseInt(textOf(`${groupsFolder}${name}/${file}`), 10);
    const bytes = number('memory.max') - number('memory.current');
    return Number.isNaN(bytes) ? [] : [{ bytes, limit: `the control group ${name}` }];
  });
}

function textOf(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}
