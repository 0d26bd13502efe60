/** A VM's options in the configuration are those of `colo-agent primary` and `secondary`: their names, their parsers, one truth. */
import type { Entry } from './toml.ts';

export type Role = 'primary' | 'standby';

export interface VmOption {
  /** Its name in the configuration. */
  key: string;
  /** `--interval`; of a negated one `--no-shadow`, which is given for `shadow = false`. */
  flag: string;
  kind: 'text' | 'list' | 'flag' | 'negated';
  roles: readonly Role[];
  /** Throws an Error that says what is wrong with the text. */
  check(text: string): void;
}

/** What the command line knows, for whoever reads the configuration. */
export interface VmOptions {
  all: readonly VmOption[];
  /** Whether the options fit together. Throws an Error that says why they don't. */
  assertFit(role: Role, args: readonly string[]): void;
}

/** An option's value as arguments of the command line. Throws an Error with what is wrong. */
export function argumentsOf(option: VmOption, { value }: Entry): string[] {
  const { key, flag, kind } = option;
  if (kind === 'flag' || kind === 'negated') {
    if (typeof value !== 'boolean') throw new Error(`\`${key}\` is true or false, not ${shown(value)}`);
    return value === (kind === 'flag') ? [flag] : [];
  }
  if (Array.isArray(value) && kind === 'text')
    throw new Error(`\`${key}\` has one value, not a list: write it without [ ]`);
  return (Array.isArray(value) ? value : [value]).flatMap((each) => {
    const text = textOf(key, each);
    try {
      option.check(text);
    } catch (error) {
      throw new Error(`\`${key} = ${shown(each)}\`: ${(error as Error).message}`);
    }
    // One argument: a value may begin with a dash.
    return [`${flag}=${text}`];
  });
}

function textOf(key: string, value: unknown): string {
  // No argument of a program can have one.
  if (typeof value === 'string' && value.includes('\0')) throw new Error(`\`${key}\` has a NUL in it`);
  if (typeof value === 'string') return value;
  if (typeof value === 'number' && Number.isInteger(value)) return String(value);
  throw new Error(`\`${key}\` is a text or a whole number, not ${shown(value)}: write it in quotes`);
}

function shown(value: unknown): string {
  return value === undefined ? 'a table' : JSON.stringify(value);
}
