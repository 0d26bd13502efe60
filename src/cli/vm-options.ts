/** The options of `primary` and `secondary` as the daemon's configuration knows them, taken from those commands themselves. */
import type { Command, Option } from 'commander';
import type { Role, VmOption, VmOptions } from '../daemon/vm-option.ts';
import { primaryCommand } from './primary.ts';
import { checkOptions, type RoleOptions } from './roles.ts';
import { secondaryCommand } from './secondary.ts';

const COMMANDS: Record<Role, () => Command> = { primary: primaryCommand, standby: secondaryCommand };

export function vmOptions(): VmOptions {
  const all = new Map<string, VmOption>();
  for (const role of ['primary', 'standby'] as const) {
    for (const option of COMMANDS[role]().options) {
      const known = all.get(option.long as string);
      all.set(
        option.long as string,
        known ? { ...known, roles: [...known.roles, role] } : vmOption(option, role),
      );
    }
  }
  return { all: [...all.values()], assertFit };
}

function vmOption(option: Option, role: Role): VmOption {
  const flag = option.long as string;
  return {
    key: flag.replace(/^--(no-)?/, ''),
    flag,
    kind: kindOf(option),
    roles: [role],
    check: (text) => void option.parseArg?.(text, option.defaultValue),
  };
}

function kindOf(option: Option): VmOption['kind'] {
  if (option.negate) return 'negated';
  if (!option.required) return 'flag';
  return Array.isArray(option.defaultValue) ? 'list' : 'text';
}

function assertFit(role: Role, args: readonly string[]): void {
  const command = COMMANDS[role]()
    .exitOverride()
    .configureOutput({ writeErr: () => {} })
    .action((options: RoleOptions) => checkOptions(options));
  try {
    command.parse(args, { from: 'user' });
  } catch (error) {
    throw new Error((error as Error).message.replace(/^error: /, ''));
  }
}
