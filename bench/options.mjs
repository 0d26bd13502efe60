/** The command line of the benchmark. Looks whether the files that it names can be used. */
import { accessSync, closeSync, constants, openSync } from 'node:fs';
import { parseArgs } from 'node:util';

/** In the order in which they run. */
export const SECTIONS = ['native', 'checkpoints', 'client', 'peer', 'failover', 'growth', 'disks'];

export const USAGE = `usage: npm run bench -- [OPTION...]
  --quick             fewer loads and shorter runs: under 5 minutes on 2 cores
  --only NAME,...     these sections alone: ${SECTIONS.join(', ')}
  --json FILE         writes every figure, and the summary
  --compare FILE      ratios against what an earlier run wrote with --json
  --readme            writes the figures into README.md, between its marks
  --qemu PATH         the QEMU to protect (default: qemu-system-x86_64)
  --peer-qemu PATH    the QEMU with in-tree COLO (default: QEMU of Debian sid, fetched into .cache/matrix)`;

export class UsageError extends Error {}

/** Throws a UsageError that says what is wrong with the command line. */
export function parseOptions(args) {
  const options = parse(args);
  const sections = options.only === undefined ? SECTIONS : options.only.split(',');
  for (const name of sections) {
    if (!SECTIONS.includes(name))
      throw new UsageError(`--only ${name}: there is no such section, only ${SECTIONS.join(', ')}`);
  }
  if (options.readme && options.only !== undefined)
    throw new UsageError('--readme needs every section: leave --only out');
  for (const name of ['qemu', 'peer-qemu']) requireAccess(name, options[name], constants.X_OK, 'can be run');
  requireAccess('compare', options.compare, constants.R_OK, 'can be read');
  requireWritable(options.json);
  return {
    quick: options.quick,
    readme: options.readme,
    sections: SECTIONS.filter((name) => sections.includes(name)),
    json: options.json,
    compare: options.compare,
    qemu: options.qemu,
    peerQemu: options['peer-qemu'],
  };
}

function parse(args) {
  try {
    return parseArgs({
      args,
      options: {
        quick: { type: 'boolean', default: false },
        readme: { type: 'boolean', default: false },
        only: { type: 'string' },
        json: { type: 'string' },
        compare: { type: 'string' },
        qemu: { type: 'string' },
        'peer-qemu': { type: 'string' },
      },
    }).values;
  } catch (error) {
    throw new UsageError(error.message);
  }
}

/** Now, and not when the figures are there and can't be kept. */
function requireWritable(file) {
  if (file === undefined) return;
  try {
    closeSync(openSync(file, 'a'));
  } catch (error) {
    throw new UsageError(`--json ${file}: can't be written: ${error.message}`);
  }
}

function requireAccess(name, file, mode, what) {
  if (file === undefined || !(file.includes('/') || name === 'compare')) return;
  try {
    accessSync(file, mode);
  } catch {
    throw new UsageError(`--${name} ${file}: there is no such file that ${what}`);
  }
}
