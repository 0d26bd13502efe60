import { Command } from 'commander';
import { sendCommand } from '../agent/control-client.ts';
import type { DrillReport } from '../agent/drill-report.ts';
import type { Status } from '../agent/status.ts';
import { onlyControlPath } from './control-path.ts';
import { drillText } from './drill-text.ts';
import { statusText } from './status-text.ts';

interface ControlOptions {
  control?: string;
  json?: boolean;
  force?: string;
}

export function statusCommand(): Command {
  return controlCommand(
    'status',
    'Show how well the VM is protected, and what would happen if its host died now',
  ).action(async (options: ControlOptions) => {
    const status = (await sendCommand(options.control ?? onlyControlPath(), 'status')) as Status;
    print(options.json ? JSON.stringify(status) : statusText(status));
  });
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
    .action(async (options: ControlOptions) =>
      report(options, await sendCommand(options.control ?? onlyControlPath(), 'failover', options.force)),
    );
}

export function drillCommand(): Command {
  return controlCommand(
    'drill',
    'Let the VM of the primary on this host go on at its standby, and say how long the guest stood: a planned failover',
  ).action(async (options: ControlOptions) => {
    const done = (await sendCommand(options.control ?? onlyControlPath(), 'drill')) as DrillReport;
    print(options.json ? JSON.stringify(done) : drillText(done));
  });
}

export function stopCommand(): Command {
  return controlCommand('stop', 'End protection and the agent; the VM keeps running')
    .option(
      '--force <name>',
      "whatever the witness says, which is told if it answers within 5 s: you know that the standby doesn't run. The VM's name",
    )
    .action(async (options: ControlOptions) =>
      report(options, await sendCommand(options.control ?? onlyControlPath(), 'stop', options.force)),
    );
}

function controlCommand(name: string, description: string): Command {
  return new Command(name)
    .description(description)
    .option('--control <socket>', "the agent's control socket (default: the only one in /run/colo-agent)")
    .option('--json', 'print JSON for scripts');
}

function report(options: ControlOptions, result: unknown): void {
  print(options.json ? JSON.stringify({ result }) : String(result));
}

function print(text: string): void {
  process.stdout.write(`${text}\n`);
}
