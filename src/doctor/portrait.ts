/** What a doctor tells of its host to the other host's doctor. */
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { hostname, release } from 'node:os';
import { promisify } from 'node:util';
import type { VmDescription } from '../vm/description.ts';
import type { Role } from './options.ts';

export interface Cpu {
  model: string;
  flags: string[];
}

export interface Portrait {
  version: string;
  host: string;
  kernel: string;
  cpu: Cpu;
  role: Role | null;
  /** Of the VM that its --qmp named, or null. A peer's is foreign: src/vm/compatibility.ts checks it. */
  description: VmDescription | null;
}

const FLAGS_MAX = 4096;

export async function selfPortrait(
  own: Pick<Portrait, 'version' | 'role' | 'description'>,
): Promise<Portrait> {
  return { ...own, host: hostname(), kernel: release(), cpu: readCpu() };
}

export function readCpu(file = '/proc/cpuinfo'): Cpu {
  const text = readFileSync(file, 'utf8');
  const value = (name: string) => new RegExp(`^${name}\\s*: (.*)$`, 'm').exec(text)?.[1]?.trim() ?? '';
  return { model: value('model name'), flags: value('flags').split(' ').filter(Boolean).sort() };
}

/** Throws Error for what is none. */
export function checkPortrait(value: unknown): Portrait {
  const portrait = value as Portrait;
  const cpu = portrait?.cpu;
  const valid =
    [portrait?.version, portrait?.host, portrait?.kernel, cpu?.model].every(isShortText) &&
    Array.isArray(cpu.flags) &&
    cpu.flags.length <= FLAGS_MAX &&
    cpu.flags.every(isShortText) &&
    [null, 'primary', 'secondary'].includes(portrait.role) &&
    typeof portrait.description === 'object';
  if (!valid)
    throw new Error("what the peer's doctor tells of its host can't be read: are both of one version?");
  return portrait;
}

function isShortText(value: unknown): boolean {
  return typeof value === 'string' && value.length <= 256 && /^[\x20-\x7e]*$/.test(value);
}

interface Route {
  dev?: string;
  metrics?: { mtu?: number }[];
}

/** Of what leaves this host for `address`; null where nobody can tell (no ip(8), no route). */
export async function mtuTowards(address: string): Promise<number | null> {
  try {
    const [route] = (await ip('route', 'get', address)) as Route[];
    const limit = route?.metrics?.find(({ mtu }) => mtu !== undefined)?.mtu;
    if (limit !== undefined) return limit;
    const [link] = (await ip('link', 'show', 'dev', route?.dev ?? '')) as { mtu?: number }[];
    return link?.mtu ?? null;
  } catch {
    return null;
  }
}

async function ip(...args: string[]): Promise<unknown[]> {
  const { stdout } = await promisify(execFile)('ip', ['-json', ...args], { timeout: 5000 });
  return JSON.parse(stdout) as unknown[];
}
