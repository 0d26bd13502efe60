/** What the daemon is asked beside what each VM's agent is. */
import { setTimeout as sleep } from 'node:timers/promises';
import { Command, InvalidArgumentError } from 'commander';
import { sendCommand } from '../agent/control-client.ts';
import type { TakeOverRecord } from '../agent/take-over-record.ts';
import { readConfig } from '../daemon/config.ts';
import type { ReloadReport } from '../daemon/daemon.ts';
import type { DaemonEvent } from '../daemon/event-store.ts';
import type { VmSummary } from '../daemon/vm-process.ts';
import { DAEMON_SOCKET } from './control-path.ts';
import { CliError, EXIT } from './exit-codes.ts';
import { vmName } from './option-parsers.ts';
import { CONFIG_FILE } from './serve.ts';
import { table } from './table.ts';
import { takeOverText } from './take-over-text.ts';
import { vmOptions } from './vm-options.ts';

interface DaemonCliOptions {
  control: string;
  json?: boolean;
}

interface EventsCliOptions extends DaemonCliOptions {
  follow?: boolean;
  vm?: string;
  failover?: string;
}

const FOLLOW_MS = 500;
const SUMMARY_FIELDS = ['vm', 'role', 'state', 'generation', 'agentPid', 'restarts', 'reason'] as const;
type SummaryField = (typeof SUMMARY_FIELDS)[number];

export function listCommand(): Command {
  return daemonCommand('list', 'Show all VMs of the daemon: role, state, and why')
    .argument('[vm]', 'this one alone', vmName)
    .option(
      '--fields <names>',
      `these alone (${SUMMARY_FIELDS.join(', ')}), for scripts: a line for each VM, tabs between them, - for what there is none of`,
      summaryFields,
    )
    .action(runList);
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
    .option(
      '--failover <id>',
      'the timeline of a take-over instead: what was seen when, who decided, what took how long; `last` for the newest. Agents tell it, too',
    )
    .action((options: EventsCliOptions) =>
      options.failover === undefined ? runEvents(options) : showTakeOver(options, options.failover),
    );
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

async function runList(
  vm: string | undefined,
  { control, json, fields }: DaemonCliOptions & { fields?: SummaryField[] },
): Promise<void> {
  const vms = (await sendCommand(control, 'list', { vm: vm ?? null })) as VmSummary[];
  if (json) print(JSON.stringify(vms));
  else if (fields === undefined) print(listText(vms));
  else for (const each of vms) print(fields.map((field) => fieldText(each[field])).join('\t'));
}

async function showTakeOver({ control, json, vm }: EventsCliOptions, id: string): Promise<void> {
  const known = (await sendCommand(control, 'take-overs', { vm: vm ?? null })) as TakeOverRecord[];
  const record = id === 'last' ? known.at(-1) : known.find((each) => each.id === id);
  if (record === undefined) {
    const ids = known.map((each) => each.id).join(', ');
    const told = ids === '' ? 'none is known here' : `known are ${ids}`;
    throw new CliError(EXIT.usage, `there is no take-over \`${id}\`: ${told}`);
  }
  print(json ? JSON.stringify(record) : takeOverText(record));
}

async function runEvents({ control, json, follow, vm }: EventsCliOptions): Promise<void> {
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

function summaryFields(text: string): SummaryField[] {
  return text.split(',').map((name) => {
    const field = SUMMARY_FIELDS.find((each) => each === name);
    if (field !== undefined) return field;
    throw new InvalidArgumentError(`there is no '${name}'; known are ${SUMMARY_FIELDS.join(', ')}`);
  });
}

/** One word or one line, whatever an error's text has in it. */
function fieldText(value: string | number | null): string {
  return value === null ? '-' : String(value).replace(/\s+/g, ' ');
}

function listText(vms: readonly VmSummary[]): string {
  const rows = vms.map(({ vm, role, state, reason }) => [vm, role ?? '-', state, reason]);
  return table([['VM', 'ROLE', 'STATE', 'REASON'], ...rows]);
}

function reloadText({ added, changed, removed, unchanged }: ReloadReport): string {
  const parts = Object.entries({ added, changed, removed }).filter(([, names]) => names.length > 0);
  const told = parts.map(([what, names]) => `${what}: ${names.join(', ')}`);
  return [...told, `unchanged: ${unchanged.length}`].join('; ');
}

function eventText({ time, vm, role, state, reason, takeOver }: DaemonEvent): string {
  const more = takeOver === undefined ? '' : ` (--failover ${takeOver.id})`;
  return `${time}  ${vm} (${role ?? '-'})  ${state}: ${reason}${more}`;
}

function print(text: string): void {
  process.stdout.write(`${text}\n`);
}
