import { setTimeout as sleep } from 'node:timers/promises';
import { Command } from 'commander';
import { sendCommand } from '../agent/control-client.ts';
import type { DrillReport } from '../agent/drill-report.ts';
import type { Status } from '../agent/status.ts';
import type { VmOverview } from '../daemon/readings.ts';
import { onlyControlPath } from './control-path.ts';
import { drillText } from './drill-text.ts';
import { vmName } from './option-parsers.ts';
import { repaint } from './screen.ts';
import { statusTable } from './status-table.ts';
import { statusText } from './status-text.ts';

interface ControlOptions {
  control?: string;
  json?: boolean;
  force?: string;
  watch?: boolean;
}

const WATCH_MS = 1000;

export function statusCommand(): Command {
  return controlCommand(
    'status',
    'Show how well the VM is protected, and what would happen if its host died now; of a daemon with several a table of all',
  )
    .option('--watch', 'again every second, until it is interrupted')
    .action(async (vm: string | undefined, options: ControlOptions) => {
      for (let first = true; ; first = false) {
        show(await statusFor(vm, options), options, first);
        if (!options.watch) return;
        await sleep(WATCH_MS);
      }
    });
}

/** Of one VM, or of all where there are several and none was named. */
async function statusFor(vm: string | undefined, options: ControlOptions): Promise<Status | VmOverview[]> {
  try {
    return (await send('status', vm, options)) as Status;
  } catch (error) {
    if (vm !== undefined || (error as { code?: unknown }).code !== 'which-vm') throw error;
    return (await send('overview', vm, options)) as VmOverview[];
  }
}

function show(status: Status | VmOverview[], { json, watch }: ControlOptions, first: boolean): void {
  const text = Array.isArray(status) ? statusTable(status) : statusText(status);
  const { isTTY, columns, rows } = process.stdout;
  if (json) print(JSON.stringify(status));
  else if (watch && isTTY) process.stdout.write(repaint(text, columns, rows, first));
  else print(text);
}

export function failoverCommand(): Command {
  return controlCommand(
    'failover',
    'Let the standby on this host take the VM over (its primary must be lost)',
  )
    .option(
      '--force <name>',
      "whatever the witness says, which is told if it answers within 5 s: you know that the primary doesn't run. The VM's name",
    )
    .action(async (vm: string | undefined, options: ControlOptions) =>
      report(options, await send('failover', vm, options)),
    );
}

export function drillCommand(): Command {
  return controlCommand(
    'drill',
    'Let the VM of the primary on this host go on at its standby, and say how long the guest stood: a planned failover',
  ).action(async (vm: string | undefined, options: ControlOptions) => {
    const done = (await send('drill', vm, options)) as DrillReport;
    print(options.json ? JSON.stringify(done) : drillText(done));
  });
}

export function stopCommand(): Command {
  return controlCommand('stop', 'End protection and the agent; the VM keeps running')
    .option(
      '--force <name>',
      "whatever the witness says, which is told if it answers within 5 s: you know that the standby doesn't run. The VM's name",
    )
    .action(async (vm: string | undefined, options: ControlOptions) =>
      report(options, await send('stop', vm, options)),
    );
}

function controlCommand(name: string, description: string): Command {
  return new Command(name)
    .description(description)
    .argument('[vm]', 'which one, where several run here', vmName)
    .option(
      '--control <socket>',
      "the daemon's or an agent's control socket (default: the daemon's, or the only one in /run/colo-agent)",
    )
    .option('--json', 'print JSON for scripts');
}

function send(command: string, vm: string | undefined, options: ControlOptions): Promise<unknown> {
  return sendCommand(options.control ?? onlyControlPath(vm ?? null), command, {
    ...(vm !== undefined && { vm }),
    ...(options.force !== undefined && { force: options.force }),
  });
}

function report(options: ControlOptions, result: unknown): void {
  print(options.json ? JSON.stringify({ result }) : String(result));
}

function print(text: string): void {
  process.stdout.write(`${text}\n`);
}
