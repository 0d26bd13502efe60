/** `colo-agent unprotect VM`: the end of what `protect` began; the VM goes on. */
import { setTimeout as sleep } from 'node:timers/promises';
import { Command } from 'commander';
import { sendCommand } from '../agent/control-client.ts';
import { readConfig } from '../daemon/config.ts';
import { isOurs, putVmFile, readVmFile, vmFile } from '../daemon/vm-file.ts';
import type { VmSummary } from '../daemon/vm-process.ts';
import { DAEMON_SOCKET } from './control-path.ts';
import { CliError, EXIT } from './exit-codes.ts';
import { vmName } from './option-parsers.ts';
import { vmOptions } from './vm-options.ts';

interface UnprotectOptions {
  control: string;
  json?: boolean;
}

const POLL_MS = 200;
/** Longer than an agent ever needs that can end. */
const END_MS = 60_000;

export function unprotectCommand(): Command {
  return new Command('unprotect')
    .description(
      'End the protection of a VM that `protect` began, and take its file away; the VM keeps running',
    )
    .argument('<vm>', 'which one', vmName)
    .option('--control <socket>', "the daemon's control socket", DAEMON_SOCKET)
    .option('--json', 'print JSON for scripts')
    .action(runUnprotect);
}

async function runUnprotect(name: string, { control, json }: UnprotectOptions): Promise<void> {
  const { file: configFile } = (await sendCommand(control, 'config')) as { file: string };
  const file = removable(configFile, name);
  if (file !== null) putVmFile(file, null);
  // Also without a file: another `unprotect` may have been ended between the two.
  await sendCommand(control, 'reload');
  await untilGone(control, name);
  const result = file === null ? 'not protected here' : 'protection has ended; the VM keeps running';
  process.stdout.write(json ? `${JSON.stringify({ vm: name, file, result })}\n` : `${name}: ${result}\n`);
}

/** The file that goes; null: the VM isn't in the configuration. Throws CliError for a VM that a person has written there. */
function removable(configFile: string, name: string): string | null {
  const known = readConfig(configFile, vmOptions()).vms.get(name);
  if (known === undefined) return null;
  const file = vmFile(configFile, name);
  const text = readVmFile(file);
  if (known.file === file && text !== null && isOurs(text)) return file;
  throw new CliError(
    EXIT.configuration,
    `VM ${name} stands at ${known.place}, which \`protect\` didn't write; nothing was changed. Remove its table there, and then \`colo-agent reload\`; or \`colo-agent stop ${name}\` until the next reload of it`,
  );
}

async function untilGone(control: string, name: string): Promise<void> {
  const deadlineMs = performance.now() + END_MS;
  for (;;) {
    const all = (await sendCommand(control, 'list')) as VmSummary[];
    const left = all.find(({ vm }) => vm === name);
    if (left === undefined) return;
    if (performance.now() > deadlineMs)
      throw new CliError(
        EXIT.unavailable,
        `the agent of ${name}, process ${left.agentPid}, was told to end and hasn't within ${END_MS / 1000} s; its file is gone, and it is not started again`,
      );
    await sleep(POLL_MS);
  }
}
