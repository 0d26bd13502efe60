import { readFileSync } from 'node:fs';
import path from 'node:path';
import { Command } from 'commander';
import { shellText } from '../standby/command.ts';
import { parsePlan, type StandbyPlan } from '../standby/plan.ts';
import { readPrimary } from '../standby/primary.ts';
import { hasSystemd, startStandby } from '../standby/start.ts';
import { planStandby } from '../standby/translate.ts';
import { guestName } from '../vm/command-line.ts';
import { CliError, EXIT } from './exit-codes.ts';
import { assignment, vmName } from './option-parsers.ts';
import { qmpPathOf, type WhichVm, withWhichVm } from './which-vm.ts';

interface StandbyCliOptions extends WhichVm {
  vm?: string;
  folder?: string;
  qmpPath?: string;
  disk: ReadonlyMap<string, string>;
  tap: ReadonlyMap<string, string>;
  vnc?: string;
  emulator?: string;
  from?: string;
  start: boolean;
  scope?: boolean;
  json?: boolean;
}

const OF_THE_PRIMARYS_HOST = [
  ...['qmp', 'libvirt', 'vm', 'folder', 'qmpPath', 'disk', 'tap', 'vnc', 'emulator'],
] as const;
const STANDBYS_FOLDER = '/var/lib/colo-agent/standbys';

export function standbyCommand(): Command {
  const none: ReadonlyMap<string, string> = new Map();
  return withWhichVm(new Command('standby'))
    .description(
      "Make the standby's QEMU command line from the running primary's, and start it on the other host",
    )
    .optionsGroup("On the primary's host, about the standby's:")
    .option('--vm <name>', "the VM's name for colo-agent (default: the one QEMU has)", vmName)
    .option(
      '--folder <folder>',
      `where its disks, sockets and logs are to lie (default: ${STANDBYS_FOLDER}/NAME)`,
      absolutePath('--folder'),
    )
    .option('--qmp-path <socket>', 'its QMP socket (default: qmp in the folder)', absolutePath('--qmp-path'))
    .option(
      '--disk <id=file>',
      'a file or block device for this disk; may be given several times',
      assignment,
      none,
    )
    .option('--tap <id=ifname>', 'the interface of this netdev; may be given several times', assignment, none)
    .option('--vnc <address>', 'what its -vnc is given, e.g. 127.0.0.1:7 or none')
    .option('--emulator <file>', 'its QEMU, where that is another file')
    .option('--json', 'print the plan that --from reads')
    .optionsGroup("On the standby's host:")
    .option('--from <file>', 'read the plan from here; - is standard input')
    .option(
      '--start',
      'make the disk files that are missing, start QEMU, and see that it can be a standby',
      false,
    )
    .option('--scope', 'in a systemd scope of its own (default: where systemd runs)')
    .option('--no-scope', 'as a session of its own, also where systemd runs')
    .action(runStandby);
}

function absolutePath(option: string): (text: string) => string {
  return (text) => {
    if (path.isAbsolute(text)) return path.normalize(text);
    throw new CliError(EXIT.usage, `${option} is for another host: give an absolute path, not ${text}`);
  };
}

async function runStandby(options: StandbyCliOptions, command: Command): Promise<void> {
  const { from, start, json = false } = options;
  if (from === undefined) {
    if (start) throw new CliError(EXIT.usage, '--start needs the plan: --from FILE, or - for standard input');
    const plan = await makePlan(options);
    process.stdout.write(json ? `${JSON.stringify(plan, null, 2)}\n` : planText(plan));
    return;
  }
  const [ofTheOther] = OF_THE_PRIMARYS_HOST.filter(
    (option) => command.getOptionValueSource(option) === 'cli',
  );
  if (ofTheOther !== undefined) {
    const flag = ofTheOther.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
    throw new CliError(
      EXIT.usage,
      `--${flag} belongs to the primary's host, where the plan is made: --from has what it would tell`,
    );
  }
  const plan = parsePlan(readFileSync(from === '-' ? 0 : from, 'utf8'));
  if (start) await startPlanned(plan, options);
  else process.stdout.write(planText(plan));
}

async function makePlan(options: StandbyCliOptions): Promise<StandbyPlan> {
  const primary = await readPrimary(await qmpPathOf(options));
  const vm = options.vm ?? nameOf(primary.commandLine);
  return planStandby(primary, {
    vm,
    folder: options.folder ?? path.join(STANDBYS_FOLDER, vm),
    qmpPath: options.qmpPath ?? null,
    disks: options.disk,
    taps: options.tap,
    vnc: options.vnc ?? null,
    emulator: options.emulator ?? null,
  });
}

function nameOf(commandLine: readonly string[]): string {
  const name = guestName(commandLine);
  try {
    return vmName(name ?? '');
  } catch {
    throw new CliError(
      EXIT.usage,
      `QEMU has ${name === null ? 'no name' : `the name '${name}'`}: give one by --vm NAME`,
    );
  }
}

async function startPlanned(plan: StandbyPlan, { scope, json }: StandbyCliOptions): Promise<void> {
  if (scope === true && !hasSystemd())
    throw new CliError(EXIT.unavailable, "--scope needs systemd, which doesn't run here: leave it out");
  const started = await startStandby(plan, scope ?? hasSystemd());
  if (json) {
    process.stdout.write(`${JSON.stringify(started)}\n`);
    return;
  }
  const where = started.unit === null ? 'a session of its own' : started.unit;
  process.stdout.write(
    `${plan.vm}: QEMU ${started.pid} stands as a standby, in ${where}; its log is ${started.logPath}\n` +
      `go on with: colo-agent secondary --vm ${plan.vm} --qmp ${started.qmpPath} --listen HOST:PORT\n`,
  );
}

/** A shell script, with what a person should look at in front. */
function planText({ vm, command, folder, privateFolders, differences, needed, disks }: StandbyPlan): string {
  const line = (text: string) => `# ${text.replaceAll('\n', ' ')}\n`;
  return [
    line(`The standby of ${vm}. What is another there:`),
    ...differences.map(({ what, primary, standby, option }) => {
      const change = primary === standby ? `${primary} (the same: free there?)` : `${primary} -> ${standby}`;
      return line(`  ${what}: ${change}${option === null ? '' : `   [${option}]`}`);
    }),
    ...(needed.length > 0 ? [line('What must be there as it is here:')] : []),
    ...needed.map(({ what, path: file }) => line(`  ${what}: ${file}`)),
    'set -e\n',
    `mkdir -p ${shellText([folder])}\n`,
    // Made here, or there already and nobody else's.
    ...privateFolders.map(
      (each) =>
        `mkdir -m 700 ${shellText([each])} || [ -O ${shellText([each])} ]\nchmod 700 ${shellText([each])}\n`,
    ),
    ...disks.map(diskText),
    `${shellText(command)}\n`,
  ].join('');
}

/** A block device can't be made by who doesn't know of what. */
function diskText({ file, sizeBytes }: StandbyPlan['disks'][number]): string {
  const word = shellText([file]);
  return file.startsWith('/dev/')
    ? `[ -b ${word} ] || { echo no block device ${word} >&2; exit 1; }\n`
    : `[ -e ${word} ] || { mkdir -p ${shellText([path.dirname(file)])}; truncate -s ${sizeBytes} ${word}; }\n`;
}
