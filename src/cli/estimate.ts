import { Command } from 'commander';
import { estimate, watchMsMin } from '../agent/estimate.ts';
import { Log } from '../agent/log.ts';
import { estimateText } from './estimate-text.ts';
import { CliError, EXIT } from './exit-codes.ts';
import { integer } from './option-parsers.ts';
import { onTerminationSignal } from './signals.ts';
import { qmpPathOf, type WhichVm, withWhichVm } from './which-vm.ts';

interface EstimateCliOptions extends WhichVm {
  seconds: number;
  interval?: number[];
  threads: number;
  link: number;
  roundTrip: number;
  measureFloor: boolean;
  json?: boolean;
}

const INTERVALS_MS = [25, 100, 500];
const INTERVALS_MAX = 16;

export function estimateCommand(): Command {
  const interval = integer(5, 60_000);
  return withWhichVm(new Command('estimate'))
    .description(
      'Watch a VM that is not protected, and forecast what protecting it would cost; does not stop it',
    )
    .option('--seconds <n>', 'watch for so long', integer(1, 3600), 10)
    .option(
      '--interval <ms>',
      `forecast for this checkpoint interval; may be given several times (default: ${INTERVALS_MS.join(', ')})`,
      (text: string, previous: number[] = []) => [...previous, interval(text)],
    )
    .option('--threads <n>', 'threads that scan, as in `primary`', integer(1, 64), 2)
    .option('--link <mbit/s>', 'assume a link to the standby of this rate', integer(1, 1_000_000), 1000)
    .option('--round-trip <us>', 'assume this round trip to the standby', integer(0, 10_000_000), 200)
    .option(
      '--measure-floor',
      'stop the guest once, for some milliseconds, to measure what a pause costs at the least instead of assuming it',
      false,
    )
    .option('--json', 'print JSON for scripts')
    .action(runEstimate);
}

async function runEstimate(options: EstimateCliOptions): Promise<void> {
  const intervalsMs = intervalsOf(options);
  const abort = new AbortController();
  onTerminationSignal(() => abort.abort());
  const log = new Log('warn', () => ({}));
  const found = await estimate({
    qmpPath: await qmpPathOf(options),
    seconds: options.seconds,
    intervalsMs,
    threads: options.threads,
    measureFloor: options.measureFloor,
    linkMbitPerSecond: options.link,
    linkRoundTripUs: options.roundTrip,
    signal: abort.signal,
    log,
  });
  process.stdout.write(options.json ? `${JSON.stringify(found)}\n` : `${estimateText(found)}\n`);
}

function intervalsOf({ interval = INTERVALS_MS, seconds }: EstimateCliOptions): number[] {
  const intervalsMs = [...new Set(interval)].sort((a, b) => a - b);
  if (intervalsMs.length > INTERVALS_MAX) {
    throw new CliError(EXIT.usage, `at most ${INTERVALS_MAX} intervals can be watched at once`);
  }
  const neededMs = watchMsMin(intervalsMs);
  if (neededMs > seconds * 1000) {
    throw new CliError(
      EXIT.usage,
      `--seconds ${seconds} is too short for intervals of ${intervalsMs.join(', ')} ms: give at least ${Math.ceil(neededMs / 1000)}, or other intervals`,
    );
  }
  return intervalsMs;
}
