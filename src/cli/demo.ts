import { Command } from 'commander';
import { type DemoResult, runDemo } from '../demo/demo.ts';
import { CliError, EXIT } from './exit-codes.ts';

export function demoCommand(): Command {
  return new Command('demo')
    .description(
      "Protect a guest on this machine, kill its primary, and watch a client's connection go on (needs root)",
    )
    .option('--json', 'end with one line of JSON')
    .action(async (options: { json?: boolean }) => {
      if (process.getuid?.() !== 0) {
        throw new CliError(
          EXIT.notPermitted,
          'the demo needs root: it makes a network namespace and traces QEMU',
        );
      }
      const narrate = (line: string) => process.stderr.write(`${line}\n`);
      const result = await runDemo(narrate);
      process.stdout.write(options.json ? `${JSON.stringify(result)}\n` : `${summary(result)}\n`);
      if (result.result !== 'ok') process.exitCode = EXIT.internal;
    });
}

function summary({ result, qemu, checkpoints, pauseMs, failoverMs, stream, disk }: DemoResult): string {
  const word =
    result === 'ok'
      ? 'The guest outlived its host.'
      : 'FAILED: the stream did not go on unbroken, or the disk is not of the same moment as memory.';
  return [
    '',
    word,
    `  QEMU ${qemu}, ${checkpoints} checkpoints; the guest stood for ${pauseMs.p50} ms at the median, ${pauseMs.p99} ms at the 99th percentile`,
    `  the client waited ${failoverMs} ms from the kill to the first new byte`,
    `  its stream: ${stream.received} lines, ${stream.gaps} gaps, ${stream.regressions} regressions, one connection`,
    `  its disk: ${disk.writes} writes, ${disk.mismatches} mismatches`,
  ].join('\n');
}
