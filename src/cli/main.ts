#!/usr/bin/env node
import { readFileSync } from 'node:fs';
import { Command, CommanderError } from 'commander';
import { drillCommand, failoverCommand, statusCommand, stopCommand } from './control.ts';
import { demoCommand } from './demo.ts';
import { estimateCommand } from './estimate.ts';
import { EXIT, exitCodeOf } from './exit-codes.ts';
import { pairCommand } from './pair.ts';
import { primaryCommand } from './primary.ts';
import { secondaryCommand } from './secondary.ts';
import { standbyCommand } from './standby.ts';

const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
  version: string;
};

const program = new Command('colo-agent')
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
  .addCommand(standbyCommand())
  .addCommand(demoCommand());

for (const command of [program, ...program.commands]) command.exitOverride();

try {
  await program.parseAsync();
} catch (error) {
  if (error instanceof CommanderError) {
    // Commander has printed its message; --help and --version end with 0 too.
    process.exitCode = error.exitCode === 0 ? EXIT.ok : EXIT.usage;
  } else {
    process.stderr.write(`colo-agent: ${error instanceof Error ? error.message : String(error)}\n`);
    process.exitCode = exitCodeOf(error);
  }
}
