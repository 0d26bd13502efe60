import { accessSync, constants } from 'node:fs';
import path from 'node:path';
import { type Command, InvalidArgumentError } from 'commander';
import type { FenceOptions } from '../agent/fence.ts';
import { integer } from './option-parsers.ts';

export interface FenceCliOptions {
  fenceCommand?: string;
  fenceTimeout: number;
  fenceHost?: string;
}

export function withFenceOptions(command: Command): Command {
  return command
    .option(
      '--fence-command <program>',
      'run PROGRAM VM HOST GENERATION before a take-over; unless it exits with 0 the VM stays stopped (docs/fencing.md)',
      executable,
    )
    .option('--fence-timeout <s>', 'it has failed when it takes longer', integer(1, 3600), 60)
    .option('--fence-host <name>', "HOST: what it knows the primary's host by (default: its address)");
}

export function fenceOptions({
  fenceCommand: command,
  fenceTimeout,
  fenceHost,
}: FenceCliOptions): FenceOptions | null {
  if (command === undefined) return null;
  return { command, timeoutMs: fenceTimeout * 1000, host: fenceHost ?? null };
}

/** Found out now, not in the moment of the take-over. */
function executable(file: string): string {
  if (!path.isAbsolute(file))
    throw new InvalidArgumentError('must be an absolute path: it is run without a shell');
  try {
    accessSync(file, constants.X_OK);
  } catch (error) {
    throw new InvalidArgumentError(`can't be run: ${(error as Error).message}`);
  }
  return file;
}
