import { readFileSync } from 'node:fs';
import { Command } from 'commander';
import { drillCommand, failoverCommand, statusCommand, stopCommand } from './control.ts';
import { demoCommand } from './demo.ts';
import { estimateCommand } from './estimate.ts';
import { pairCommand } from './pair.ts';
import { primaryCommand } from './primary.ts';
import { secondaryCommand } from './secondary.ts';

const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
  version: string;
};

/** All commands with their options: what runs, and what the man page and the shells' completions are written from (scripts/reference.mjs). */
export function programTree(): Command {
  return new Command('colo-agent')
    .description('Keeps a running QEMU virtual machine alive through the death of its host.')
    .version(version)
    .showHelpAfterError('(colo-agent --help shows the commands and options)')
    .addCommand(primaryCommand())
    .addCommand(secondaryCommand())
    .addCommand(statusCommand())
    .addCommand(failoverCommand())
    .addCommand(drillCommand())
    .addCommand(stopCommand())
    .addCommand(pairCommand())
    .addCommand(estimateCommand())
    .addCommand(demoCommand());
}
