import { Command } from 'commander';
import { drillCommand, failoverCommand, statusCommand, stopCommand } from './control.ts';
import { configCommand, eventsCommand, listCommand, reloadCommand, webCommand } from './daemon-commands.ts';
import { demoCommand } from './demo.ts';
import { doctorCommand } from './doctor.ts';
import { estimateCommand } from './estimate.ts';
import { pairCommand } from './pair.ts';
import { primaryCommand } from './primary.ts';
import { protectCommand } from './protect.ts';
import { secondaryCommand } from './secondary.ts';
import { serveCommand } from './serve.ts';
import { standbyCommand } from './standby.ts';
import { topCommand } from './top.ts';
import { unprotectCommand } from './unprotect.ts';
import { version } from './version.ts';

/** All commands with their options: what runs, and what the man page and the shells' completions are written from (scripts/reference.mjs). */
export function programTree(): Command {
  return new Command('colo-agent')
    .description('Keeps a running QEMU virtual machine alive through the death of its host.')
    .version(version)
    .showHelpAfterError('(colo-agent --help shows the commands and options)')
    .addCommand(primaryCommand())
    .addCommand(secondaryCommand())
    .addCommand(serveCommand())
    .addCommand(protectCommand())
    .addCommand(unprotectCommand())
    .addCommand(configCommand())
    .addCommand(reloadCommand())
    .addCommand(listCommand())
    .addCommand(topCommand())
    .addCommand(eventsCommand())
    .addCommand(webCommand())
    .addCommand(statusCommand())
    .addCommand(failoverCommand())
    .addCommand(drillCommand())
    .addCommand(stopCommand())
    .addCommand(pairCommand())
    .addCommand(estimateCommand())
    .addCommand(standbyCommand())
    .addCommand(doctorCommand())
    .addCommand(demoCommand());
}
