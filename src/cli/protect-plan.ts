/** What `protect` makes of the configuration: found out, and checked whole, before anything is changed. */
import { sendCommand } from '../agent/control-client.ts';
import { formatHostPort } from '../agent/peer-address.ts';
import { readConfig, type VmConfig } from '../daemon/config.ts';
import { isOurs, putVmFile, readVmFile, vmFile, vmFileText, vmTable } from '../daemon/vm-file.ts';
import { CliError, EXIT } from './exit-codes.ts';
import { choosePort, type Standby } from './protect-options.ts';
import { vmOptions } from './vm-options.ts';

/** The ways to say which VM it is. */
const SOURCES = ['qmp', 'libvirt'];

/** What is to be in the configuration, and what is there. */
export interface Plan {
  vm: VmConfig;
  file: string;
  before: string | null;
  /** Null: it says so already. */
  text: string | null;
}

/** Throws ConfigError, and CliError where the configuration is somebody else's to change. Changes nothing. */
export function planFor(
  configFile: string,
  name: string,
  to: Standby | null,
  given: Map<string, unknown>,
): Plan {
  const options = vmOptions();
  const config = readConfig(configFile, options);
  const known = config.vms.get(name);
  const file = vmFile(configFile, name);
  const before = readVmFile(file);
  const peer = to === null ? known?.values.get('peer') : formatHostPort(choosePort(config, name, to));
  if (peer === undefined)
    throw new CliError(EXIT.usage, `say where the standby of ${name} is: --to HOST[:PORT]`);
  if (known === undefined && !SOURCES.some((key) => given.has(key)))
    throw new CliError(EXIT.usage, `say which VM ${name} is: --qmp SOCKET, or --libvirt DOMAIN`);
  const wanted = new Map([...given, ['peer', peer]]);
  if (known !== undefined && saysSo(known, wanted))
    return { vm: known, file: known.file, before: null, text: null };
  assertOurs(name, known, file, before, wanted);
  const text = vmFileText(name, new Map([...kept(known, wanted), ...wanted]));
  const vm = readConfig(configFile, options, { file, text }).vms.get(name) as VmConfig;
  return { vm, file, before, text };
}

/** What is of its own and stays. It is found in one way: one that is given goes in place of the other. */
function kept(known: VmConfig | undefined, wanted: ReadonlyMap<string, unknown>): [string, unknown][] {
  const found = SOURCES.some((key) => wanted.has(key));
  return [...(known?.own ?? [])].filter(([key]) => !(found && SOURCES.includes(key)));
}

function saysSo({ values }: VmConfig, wanted: ReadonlyMap<string, unknown>): boolean {
  return [...wanted].every(([key, value]) => String(values.get(key)) === String(value));
}

function assertOurs(
  name: string,
  known: VmConfig | undefined,
  file: string,
  before: string | null,
  wanted: ReadonlyMap<string, unknown>,
): void {
  if (known === undefined && before === null) return;
  if (known?.file === file && before !== null && isOurs(before)) return;
  if (known === undefined)
    throw new CliError(
      EXIT.configuration,
      `${file} is there already, without VM ${name}: take it away, or write the VM into it`,
    );
  const lines = vmTable(name, wanted).slice(1);
  throw new CliError(
    EXIT.configuration,
    `VM ${name} stands at ${known.place}, which \`protect\` didn't write; nothing was changed. Write there, and then \`colo-agent reload ${name}\`:\n  ${lines.join('\n  ')}`,
  );
}

/** Starts the VM's agent also where somebody has stopped it. Whatever fails, the file is as it was. */
export async function place({ vm, file, before, text }: Plan, control: string): Promise<void> {
  if (text !== null) putVmFile(file, text);
  try {
    await sendCommand(control, 'reload', { vm: vm.name });
  } catch (error) {
    if (text !== null) putVmFile(file, before);
    throw error;
  }
}

/** The configuration is as it was, and what runs by it. */
export async function takeBack({ file, before, text }: Plan, control: string): Promise<void> {
  if (text === null) return;
  putVmFile(file, before);
  await sendCommand(control, 'reload');
}
