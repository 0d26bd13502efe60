/**
 * `npm run test:matrix [-- --only TEXT]`: the end-to-end tests on three versions of QEMU, the rest on three versions of Node.js. Takes half an hour
 * on two cores; writes docs/matrix.md. With --only, just the rows whose name contains the text run ("QEMU 10", "unit"), and the others stay as they
 * were: what failed once and is mended need not cost the whole matrix again. Each row names its commit.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import { parseArgs } from 'node:util';

const CACHE = '.cache/matrix';
const NODE_MAJORS = [20, 22, 24];
mkdirSync(CACHE, { recursive: true });

const ROWS = `${CACHE}/rows.json`;
const git = (...args) => execFileSync('git', args, { encoding: 'utf8' }).trim();
const changed = git('status', '--porcelain', '--', 'src', 'native', 'guest', 'test') !== '';
const COMMIT = git('rev-parse', '--short', 'HEAD') + (changed ? ' and changes' : '');
const { values: options } = parseArgs({ options: { only: { type: 'string', default: '' } } });

const rows = new Map(options.only && existsSync(ROWS) ? JSON.parse(readFileSync(ROWS, 'utf8')) : []);
for (const qemu of [distributionQemu(), newerQemu('trixie'), newerQemu('sid')]) {
  const env = { COLO_QEMU: qemu.binary };
  row('e2e', process.execPath, env, `QEMU ${qemu.version}`, `Node.js ${process.versions.node}`);
}
for (const major of NODE_MAJORS) {
  const node = nodeBinary(major);
  const version = execFileSync(node, ['--version'], { encoding: 'utf8' }).trim().slice(1);
  for (const project of ['unit', 'sim']) row(project, node, {}, '', `Node.js ${version}`);
}
writeTable([...rows.values()]);
process.exitCode = [...rows.values()].every(({ failed }) => failed === 0) ? 0 : 1;

function row(project, node, env, qemu, runtime) {
  const name = [project, qemu, runtime].filter(Boolean).join(', ');
  if (!name.includes(options.only)) return;
  rows.set(name, run(project, node, env, qemu, runtime));
  writeFileSync(ROWS, JSON.stringify([...rows]));
}

function distributionQemu() {
  return { binary: 'qemu-system-x86_64', version: versionOf('qemu-system-x86_64') };
}

function newerQemu(suite) {
  execFileSync('sh', ['scripts/newer-qemu.sh', suite, `${CACHE}/qemu`], { stdio: 'inherit' });
  const binary = `${process.cwd()}/${CACHE}/qemu/qemu-${suite}`;
  return { binary, version: versionOf(binary) };
}

function versionOf(binary) {
  return execFileSync(binary, ['--version'], { encoding: 'utf8' }).match(/version (\S+)/)[1];
}

/** The `node` package of the npm registry carries the binary itself. */
function nodeBinary(major) {
  if (process.versions.node.startsWith(`${major}.`)) return process.execPath;
  const folder = `${CACHE}/node-${major}`;
  const binary = `${process.cwd()}/${folder}/node_modules/node/bin/node`;
  if (!existsSync(binary))
    execFileSync('npm', ['install', '--silent', '--prefix', folder, `node@${major}`], { stdio: 'inherit' });
  return binary;
}

function run(project, node, env, qemu, runtime) {
  console.log(`\n== ${project} on ${[qemu, runtime].filter(Boolean).join(', ')}`);
  const report = `${CACHE}/report.json`;
  const began = Date.now();
  const ended = spawnSync(
    node,
    [
      'node_modules/vitest/vitest.mjs',
      'run',
      '--project',
      project,
      '--reporter=default',
      '--reporter=json',
      `--outputFile.json=${report}`,
    ],
    { stdio: 'inherit', env: { ...process.env, ...env } },
  );
  const { numTotalTests, numPassedTests } = JSON.parse(readFileSync(report, 'utf8'));
  const failed = Math.max(numTotalTests - numPassedTests, ended.status === 0 ? 0 : 1);
  return {
    project,
    qemu,
    runtime,
    passed: numPassedTests,
    failed,
    seconds: Math.round((Date.now() - began) / 1000),
    on: `${new Date().toISOString().slice(0, 10)}, ${COMMIT}`,
  };
}

function writeTable(all) {
  const lines = all.map(
    (row) =>
      `| ${row.project} | ${row.qemu} | ${row.runtime} | ${row.passed} | ${row.failed} | ${row.seconds} | ${row.on} |`,
  );
  const head = '| tests | QEMU | Node.js | passed | failed | seconds | run |\n|---|---|---|---|---|---|---|';
  const machine = `${os.cpus().length} cores, ${os.cpus()[0].model.trim()}, Linux ${os.release()}`;
  const text = `# The test matrix\n\nWritten by \`npm run test:matrix\` (${machine}).\n\n${head}\n${lines.join('\n')}\n`;
  writeFileSync('docs/matrix.md', text);
  console.log(`\n${text}`);
}
