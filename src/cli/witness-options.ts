/** Who decides which side goes on: the options that `primary` and `secondary` share, and what is made of them. */
import { readFileSync, statSync } from 'node:fs';
import { hostname } from 'node:os';
import { type Command, InvalidArgumentError } from 'commander';
import type { WitnessChoice } from '../agent/arbitration.ts';
import { isNodeName } from '../protocol/arbiter.ts';
import { EtcdClient } from '../witness/etcd.ts';
import { CliError, EXIT } from './exit-codes.ts';
import { integer } from './option-parsers.ts';

/** Where agents and the daemon keep what is to outlive them, unless they are told another place. */
export const STATE_FOLDER = '/var/lib/colo-agent';

export interface WitnessCliOptions {
  witness: readonly URL[] | 'manual' | 'none';
  witnessPrefix: string;
  witnessCa?: string;
  witnessCert?: string;
  witnessKey?: string;
  witnessUser?: string;
  witnessPasswordFile?: string;
  witnessTimeout: number;
  node?: string;
  stateDir: string;
}

export function withWitnessOptions(command: Command): Command {
  return command
    .option(
      '--witness <what>',
      'who decides which side goes on when they have lost each other: the URLs of an etcd cluster, separated by commas; ' +
        'manual: a person, by `failover --force NAME`; none: nobody, for trials on one host (a cut link makes both VMs run)',
      witness,
      'manual',
    )
    .option('--witness-prefix <path>', "where in etcd the VM's record lies", prefix, '/colo-agent')
    .option('--witness-ca <file>', "the CA that signed etcd's certificates (PEM; default: the system's)")
    .option('--witness-cert <file>', "this host's certificate for etcd (PEM)")
    .option('--witness-key <file>', 'its private key (PEM)')
    .option('--witness-user <name>', 'the user at etcd')
    .option('--witness-password-file <file>', "that user's password, in a file that others can't read")
    .option(
      '--witness-timeout <ms>',
      "a member of etcd that doesn't answer for so long is left for the next",
      integer(50, 60_000),
      1000,
    )
    .option(
      '--node <name>',
      "what this host calls itself at the witness (default: the host's name)",
      nodeName,
    )
    .option('--state-dir <folder>', 'where the newest generation is kept', STATE_FOLDER);
}

export interface Witnessed {
  witness: WitnessChoice;
  node: string;
  stateFolder: string;
}

/** Throws CliError for options that don't fit together, and for files that can't be used. */
export function witnessOf(vm: string, options: WitnessCliOptions): Witnessed {
  const node = nodeOf(options);
  return { witness: choiceOf(vm, node, options), node, stateFolder: options.stateDir };
}

/** What this host calls itself. Throws CliError where its own name can't be one. */
export function nodeOf({ node }: Pick<WitnessCliOptions, 'node'>): string {
  return node ?? defaultNode();
}

/** What `--witness none` risks, on every start. */
export function warnOfNoWitness({ witness }: WitnessCliOptions): void {
  if (witness !== 'none') return;
  process.stderr.write(
    'colo-agent: --witness none: nobody decides between the two sides. When the link between them is cut both VMs run, with the same ' +
      'addresses and diverging disks (split brain). Use it on one host only.\n',
  );
}

function choiceOf(vm: string, node: string, options: WitnessCliOptions): WitnessChoice {
  if (typeof options.witness === 'string') {
    const [given] = ['witnessCa', 'witnessCert', 'witnessKey', 'witnessUser', 'witnessPasswordFile'].filter(
      (name) => name in options,
    );
    if (given !== undefined) throw usage(`${flag(given)} is for an etcd: give its URLs with --witness`);
    return { kind: options.witness };
  }
  if ((options.witnessCert === undefined) !== (options.witnessKey === undefined))
    throw usage('--witness-cert and --witness-key belong together');
  if ((options.witnessUser === undefined) !== (options.witnessPasswordFile === undefined))
    throw usage('--witness-user and --witness-password-file belong together');
  return {
    kind: 'etcd',
    client: clientOf(options.witness, options),
    key: `${options.witnessPrefix}/vm/${vm}`,
    nodeKey: `${options.witnessPrefix}/node/${node}/${vm}`,
  };
}

function clientOf(endpoints: readonly URL[], options: WitnessCliOptions): EtcdClient {
  try {
    return new EtcdClient({
      endpoints,
      ca: fileOf('--witness-ca', options.witnessCa),
      cert: fileOf('--witness-cert', options.witnessCert),
      key: fileOf('--witness-key', options.witnessKey),
      user: options.witnessUser ?? null,
      password: secretOf(options.witnessPasswordFile),
      requestTimeoutMs: options.witnessTimeout,
    });
  } catch (error) {
    if (error instanceof CliError) throw error;
    throw new CliError(
      EXIT.configuration,
      `the witness's certificates can't be used: ${(error as Error).message}`,
      'witness',
    );
  }
}

function fileOf(name: string, file: string | undefined): string | null {
  if (file === undefined) return null;
  try {
    return readFileSync(file, 'utf8');
  } catch (error) {
    throw new CliError(EXIT.configuration, `${name}: ${(error as Error).message}`, 'witness');
  }
}

function secretOf(file: string | undefined): string | null {
  const text = fileOf('--witness-password-file', file);
  if (file !== undefined && (statSync(file).mode & 0o007) !== 0)
    throw new CliError(
      EXIT.configuration,
      `${file} holds a password and others may use it: chmod o= ${file}`,
      'witness',
    );
  return text === null ? null : text.replace(/\r?\n$/, '');
}

function witness(text: string): readonly URL[] | 'manual' | 'none' {
  if (text === 'manual' || text === 'none') return text;
  const urls = text.split(',').map(endpoint);
  if (new Set(urls.map(({ protocol }) => protocol)).size > 1)
    throw new InvalidArgumentError('some URLs are https and some http: one cluster has one of them');
  return urls;
}

function endpoint(text: string): URL {
  const url = URL.canParse(text) ? new URL(text) : null;
  const plain = url !== null && url.pathname === '/' && url.search === '' && url.username === '';
  if (!plain || !['http:', 'https:'].includes(url.protocol))
    throw new InvalidArgumentError(`'${text}' is neither https://HOST:PORT of an etcd, nor manual, nor none`);
  // What URL leaves out is not what etcd listens at.
  if (url.port === '') throw new InvalidArgumentError(`'${text}' names no port (etcd's is usually 2379)`);
  return url;
}

function prefix(text: string): string {
  if (!/^\/[!-~]{1,200}$/.test(text) || text.endsWith('/'))
    throw new InvalidArgumentError('a prefix begins with / and does not end with it');
  return text;
}

function nodeName(text: string): string {
  if (isNodeName(text)) return text;
  throw new InvalidArgumentError(
    'a node name is 1-63 letters, digits, dots, dashes or underscores, and begins with a letter or digit',
  );
}

function defaultNode(): string {
  const name = hostname();
  if (isNodeName(name)) return name;
  throw usage(`this host's name, '${name}', can't stand in the witness's record: give --node`);
}

function usage(message: string): CliError {
  return new CliError(EXIT.usage, message);
}

function flag(option: string): string {
  return `--${option.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
}
