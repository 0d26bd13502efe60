#!/usr/bin/env node
import { CommanderError } from 'commander';
import { tellSupervisor } from '../agent/supervisor-channel.ts';
import { checksOf, hint } from '../doctor/hints.ts';
import { EXIT, exitCodeOf } from './exit-codes.ts';
import { programTree } from './program.ts';

const program = programTree();
for (const command of [program, ...program.commands, ...program.commands.flatMap(({ commands }) => commands)])
  command.exitOverride();

try {
  await program.parseAsync();
} catch (error) {
  if (error instanceof CommanderError) {
    // Commander has printed its message; --help and --version end with 0 too.
    process.exitCode = error.exitCode === 0 ? EXIT.ok : EXIT.usage;
  } else {
    const reason = (error instanceof Error ? error.message : String(error)) + hint(checksOf(error));
    tellSupervisor({ type: 'end', outcome: 'failed', reason });
    process.stderr.write(`colo-agent: ${reason}\n`);
    process.exitCode = exitCodeOf(error);
  }
}
