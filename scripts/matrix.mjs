/**
 * `npm run test:matrix`: the end-to-end tests on three versions of QEMU, the rest on three versions of Node.js. Takes about an hour on two
 * cores; writes docs/matrix.md.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import os from 'node:os';

const CACHE = '.cache/matrix';
const NODE_MAJORS = [20, 22, 24];
mkdirSync(CACHE, { recursive: true });

const rows = [];
for (const qemu of [distributionQemu(), newerQemu('trixie'), newerQemu('sid')]) {
  rows.push(
    run(
      'e2e',
      process.execPath,
      { COLO_QEMU: qemu.binary },
      `QEMU ${qemu.version}`,
      `Node.js ${process.versions.node}`,
    ),
  );
}
for (const major of NODE_MAJORS) {
  const node = nodeBinary(major);
  const version = execFileSync(node, ['--version'], { encoding: 'utf8' }).trim().slice(1);
  for (const project of ['unit', 'sim']) rows.push(run(project, node, {}, '', `Node.js ${version}`));
}
writeTable(rows);
process.exitCode = rows.every((row) => row.failed === 0) ? 0 : 1;

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
  };
}

function writeTable(all) {
  const lines = all.map(
    (row) =>
      `| ${row.project} | ${row.qemu} | ${row.runtime} | ${row.passed} | ${row.failed} | ${row.seconds} |`,
  );
  const head = '| tests | QEMU | Node.js | passed | failed | seconds |\n|---|---|---|---|---|---|';
  const machine = `${os.cpus().length} cores, ${os.cpus()[0].model.trim()}, Linux ${os.release()}`;
  const text = `# The test matrix\n\nWritten by \`npm run test:matrix\` on ${new Date().toISOString().slice(0, 10)} (${machine}).\n\n${head}\n${lines.join('\n')}\n`;
  writeFileSync('docs/matrix.md', text);
  console.log(`\n${text}`);
}
