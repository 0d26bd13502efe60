/** What the daemon is asked beside what each VM's agent is. */
import { setTimeout as sleep } from 'node:timers/promises';
import { Command } from 'commander';
import { sendCommand } from '../agent/control-client.ts';
import { readConfig } from '../daemon/config.ts';
import type { ReloadReport } from '../daemon/daemon.ts';
import type { DaemonEvent } from '../daemon/event-store.ts';
import type { VmSummary } from '../daemon/vm-process.ts';
import { DAEMON_SOCKET } from './control-path.ts';
import { vmName } from './option-parsers.ts';
import { CONFIG_FILE } from './serve.ts';
import { vmOptions } from './vm-options.ts';

interface DaemonCliOptions {
  control: string;
  json?: boolean;
}

const FOLLOW_MS = 500;

export function listCommand(): Command {
  return daemonCommand('list', 'Show all VMs of the daemon: role, state, and why').action(
    async ({ control, json }: DaemonCliOptions) => {
      const vms = (await sendCommand(control, 'list')) as VmSummary[];
      print(json ? JSON.stringify(vms) : listText(vms));
    },
  );
}

export function reloadCommand(): Command {
  return daemonCommand('reload', 'Have the daemon read its configuration again, and do what has changed')
    .argument('[vm]', 'start this one again, too, though it was stopped', vmName)
    .action(async (vm: string | undefined, { control, json }: DaemonCliOptions) => {
      const report = (await sendCommand(control, 'reload', { vm: vm ?? null })) as ReloadReport;
      print(json ? JSON.stringify(report) : reloadText(report));
    });
}

export function eventsCommand(): Command {
  return daemonCommand('events', 'Show what has happened to the VMs of the daemon')
    .option('--follow', 'and what happens from now on, until it is interrupted')
    .option('--vm <name>', 'this one alone', vmName)
    .action(runEvents);
}

export function webCommand(): Command {
  return daemonCommand('web', "Print a link into the daemon's web page: good once, for two minutes").action(
    async ({ control, json }: DaemonCliOptions) => {
      const answer = (await sendCommand(control, 'web')) as { link: string };
      print(json ? JSON.stringify(answer) : answer.link);
    },
  );
}

export function configCommand(): Command {
  return new Command('config').description("Look at the daemon's configuration").addCommand(
    new Command('check')
      .description('Say what is wrong with it, with file, line and remedy; nothing is changed')
      .option('--config <file>', 'the file; conf.d/*.toml beside it is read, too', CONFIG_FILE)
      .action(({ config }: { config: string }) => {
        const { vms } = readConfig(config, vmOptions());
        print(`${config}: good, with ${vms.size} VM${vms.size === 1 ? '' : 's'}`);
      }),
  );
}

async function runEvents({
  control,
  json,
  follow,
  vm,
}: DaemonCliOptions & { follow?: boolean; vm?: string }): Promise<void> {
  let after = 0;
  for (;;) {
    const answer = await sendCommand(control, 'events', { after, vm: vm ?? null });
    const { events, lastId } = answer as { events: DaemonEvent[]; lastId: number };
    for (const event of events) print(json ? JSON.stringify(event) : eventText(event));
    const more = lastId > after && events.length > 0;
    after = lastId;
    if (more) continue;
    if (!follow) return;
    await sleep(FOLLOW_MS);
  }
}

function daemonCommand(name: string, description: string): Command {
  return new Command(name)
    .description(description)
    .option('--control <socket>', "the daemon's control socket", DAEMON_SOCKET)
    .option('--json', 'print JSON for scripts');
}

function listText(vms: readonly VmSummary[]): string {
  const rows = vms.map(({ vm, role, state, reason }) => [vm, role ?? '-', state, reason]);
  return table([['VM', 'ROLE', 'STATE', 'REASON'], ...rows]);
}

function table(rows: readonly string[][]): string {
  const widths = rows[0]?.map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0))) ?? [];
  return rows
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

function reloadText({ added, changed, removed, unchanged }: ReloadReport): string {
  const parts = Object.entries({ added, changed, removed }).filter(([, names]) => names.length > 0);
  const told = parts.map(([what, names]) => `${what}: ${names.join(', ')}`);
  return [...told, `unchanged: ${unchanged.length}`].join('; ');
}

function eventText({ time, vm, role, state, reason }: DaemonEvent): string {
  return `${time}  ${vm} (${role ?? '-'})  ${state}: ${reason}`;
}

function print(text: string): void {
  process.stdout.write(`${text}\n`);
}
