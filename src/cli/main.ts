#!/usr/bin/env node
import { Command, CommanderError } from 'commander';
import { checksOf, hint } from '../doctor/hints.ts';
import { drillCommand, failoverCommand, statusCommand, stopCommand } from './control.ts';
import { demoCommand } from './demo.ts';
import { doctorCommand } from './doctor.ts';
import { estimateCommand } from './estimate.ts';
import { EXIT, exitCodeOf } from './exit-codes.ts';
import { pairCommand } from './pair.ts';
import { primaryCommand } from './primary.ts';
import { secondaryCommand } from './secondary.ts';
import { version } from './version.ts';

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
  .addCommand(doctorCommand(version))
  .addCommand(demoCommand());

for (const command of [program, ...program.commands]) command.exitOverride();

try {
  await program.parseAsync();
} catch (error) {
  if (error instanceof CommanderError) {
    // Commander has printed its message; --help and --version end with 0 too.
    process.exitCode = error.exitCode === 0 ? EXIT.ok : EXIT.usage;
  } else {
    const message = error instanceof Error ? error.message : String(error);
    process.stderr.write(`colo-agent: ${message}${hint(checksOf(error))}\n`);
    process.exitCode = exitCodeOf(error);
  }
}
