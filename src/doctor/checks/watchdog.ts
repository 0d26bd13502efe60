import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import path from 'node:path';
import { type Check, type Finding, fail, ok } from '../finding.ts';

const REMEDY =
  'load a driver for the watchdog of this host (or softdog), or leave --watchdog out (docs/fencing.md)';
/** /dev/watchdog itself, the same device as /dev/watchdog0. */
const MISC_DEVICE = '10:130';

export const watchdog: Check = {
  name: 'watchdog',
  title: "the host's watchdog",
  fault: 'configuration',
  run: async (patient) => judgeWatchdog(patient.options.watchdog),
};

/** Without opening it: that alone would arm it. */
export function judgeWatchdog(device: string | null, classFolder = '/sys/class/watchdog'): Finding {
  if (device === null) return ok('none is asked for (--watchdog)');
  let number: string;
  try {
    const status = statSync(device);
    if (!status.isCharacterDevice()) return fail(`${device} is no watchdog: it is no device`, REMEDY);
    number = `${status.rdev >> 8}:${status.rdev & 0xff}`;
  } catch (error) {
    return fail(`opening the watchdog ${device}: ${reasonOf(error)}`, REMEDY);
  }
  const folder = deviceFolder(number, classFolder);
  if (folder === null)
    return existsSync(classFolder)
      ? fail(`${device} is no watchdog: the kernel has none of its number`, REMEDY)
      : ok(`${device} is there; opening it would arm it, so more can't be seen`);
  const read = (name: string) => textOf(path.join(folder, name));
  if (read('state') === 'active')
    return fail(
      `${device} is in use by another program (systemd's RuntimeWatchdogSec?)`,
      'free it, or leave --watchdog out',
    );
  return ok(`${device} (${read('identity') || 'of unknown make'}) is there, and not armed`);
}

/** Node.js puts the code in front of it, and the call behind. */
function reasonOf(error: unknown): string {
  return (error as Error).message.replace(/^[A-Z]+: |, stat '.*'$/g, '');
}

function deviceFolder(number: string, classFolder: string): string | null {
  if (!existsSync(classFolder)) return null;
  const names = readdirSync(classFolder);
  const name = names.find((each) => {
    if (number === MISC_DEVICE) return each === 'watchdog0';
    return textOf(path.join(classFolder, each, 'dev')) === number;
  });
  return name === undefined ? null : path.join(classFolder, name);
}

function textOf(file: string): string {
  return existsSync(file) ? readFileSync(file, 'utf8').trim() : '';
}
