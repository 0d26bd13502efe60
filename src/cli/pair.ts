import { createInterface } from 'node:readline/promises';
import { Command } from 'commander';
import { hostCredentials } from '../agent/credential-files.ts';
import { forbidCoreDumps } from '../agent/link-security.ts';
import { decodeCode, joinPairing, PairingOffer } from '../agent/pairing.ts';
import type { HostPort } from '../agent/peer-address.ts';
import { CliError, EXIT } from './exit-codes.ts';
import { collect, pairingAddress, vmName } from './option-parsers.ts';
import { CREDENTIALS_FOLDER } from './shared-options.ts';
import { onTerminationSignal } from './signals.ts';

interface PairCliOptions {
  listen?: HostPort;
  join: boolean;
  tls: string;
  vm: string[];
}

const OFFER_MS = 10 * 60_000;

export function pairCommand(): Command {
  return new Command('pair')
    .description(
      'Make two hosts trust each other: --listen on one prints a code, --join on the other asks for it',
    )
    .option(
      '--listen <host:port>',
      "this host's address and a free port, where the other host reaches it",
      pairingAddress,
    )
    .option('--join', 'read the code of the other host from standard input', false)
    .option('--tls <folder>', "where this host's key and certificates are kept", CREDENTIALS_FOLDER)
    .option(
      '--vm <name>',
      'with --listen: pair for this VM alone; may be given several times (default: for every VM)',
      (text: string, previous: string[]) => collect(vmName(text), previous),
      [],
    )
    .action(runPair);
}

async function runPair(options: PairCliOptions): Promise<void> {
  forbidCoreDumps();
  if (options.listen && !options.join) return offer(options, options.listen);
  if (options.join && !options.listen) return join(options);
  throw new CliError(
    EXIT.usage,
    'give --listen HOST:PORT on one host, then --join on the other (`colo-agent pair --help`)',
  );
}

async function offer({ tls, vm }: PairCliOptions, listen: HostPort): Promise<void> {
  const own = hostCredentials(tls, vm.length > 0 ? vm : null);
  const pairing = await PairingOffer.open(own, listen, OFFER_MS);
  onTerminationSignal(() => pairing.close('interrupted'));
  process.stderr.write(
    `On the other host run \`colo-agent pair --join\` and give it this line; it is good once, for ${OFFER_MS / 60_000} minutes:\n`,
  );
  process.stdout.write(`${pairing.code}\n`);
  report(tls, (await pairing.paired).fingerprint);
}

// Not as an argument, which everybody on this host could read in the list of processes.
async function join({ tls, vm }: PairCliOptions): Promise<void> {
  if (vm.length > 0) throw new CliError(EXIT.usage, '--vm is for --listen: the code brings it to this host');
  if (process.stdin.isTTY) process.stderr.write('The code of the other host: ');
  const lines = createInterface({ input: process.stdin });
  const next = await lines[Symbol.asyncIterator]().next();
  lines.close();
  process.stdin.destroy();
  const code = decodeCode(next.done ? '' : next.value);
  report(tls, (await joinPairing(hostCredentials(tls, code.vms), code)).fingerprint);
}

function report(folder: string, fingerprint: string): void {
  process.stderr.write(
    `Paired. The other host's certificate (SHA-256 ${fingerprint}) is in ${folder}/trusted.pem.\n`,
  );
}
