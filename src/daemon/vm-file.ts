/** The file of one VM in conf.d that `colo-agent protect` writes, and `colo-agent unprotect` takes away. */
import {
  closeSync,
  fchmodSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs';
import path from 'node:path';
import { dropInFolder } from './config.ts';

/** What tells it from a file that a person wrote. */
const MARK =
  '# Written by `colo-agent protect`, which changes the keys that it is given and leaves the others; `colo-agent unprotect` removes it.';
const MAY_BE_EDITED =
  '# Edit it whenever you like, and `colo-agent reload`; comments are lost with the next `protect`. Without the first line both leave it alone.';

export function vmFile(configFile: string, vm: string): string {
  return path.join(dropInFolder(configFile), `${vm}.toml`);
}

/** Null: there is none. Throws the system's error. */
export function readVmFile(file: string): string | null {
  try {
    return readFileSync(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
}

export function isOurs(text: string): boolean {
  return text.startsWith(`${MARK}\n`);
}

export function vmFileText(vm: string, values: ReadonlyMap<string, unknown>): string {
  return [MARK, MAY_BE_EDITED, '', ...vmTable(vm, values), ''].join('\n');
}

/** A VM's table, as lines. */
export function vmTable(vm: string, values: ReadonlyMap<string, unknown>): string[] {
  const name = /^[A-Za-z0-9_-]+$/.test(vm) ? vm : JSON.stringify(vm);
  return [`[vm.${name}]`, ...[...values].map(([key, value]) => `${key} = ${tomlText(value)}`)];
}

/** Of texts, whole numbers, truth values, and lists of them. JSON's escapes are TOML's, too, but for DEL, which TOML doesn't take as it is. */
function tomlText(value: unknown): string {
  return JSON.stringify(value).replaceAll('\x7f', '\\u007f');
}

/** At once, so that nobody reads half of it, and for everybody to read. Null: it is taken away. Throws the system's error. */
export function putVmFile(file: string, text: string | null): void {
  if (text === null) {
    rmSync(file, { force: true });
    return;
  }
  mkdirSync(path.dirname(file), { recursive: true, mode: 0o755 });
  // A name that the daemon doesn't read.
  const beside = `${file}.new`;
  const descriptor = openSync(beside, 'w');
  try {
    writeSync(descriptor, text);
    fchmodSync(descriptor, 0o644);
    fsyncSync(descriptor);
    renameSync(beside, file);
  } catch (error) {
    rmSync(beside, { force: true });
    throw error;
  } finally {
    closeSync(descriptor);
  }
}
