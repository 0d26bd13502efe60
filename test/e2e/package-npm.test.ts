/** The npm package with its prebuilt addon: on a machine without a compiler it installs, and runs. */
import { spawnSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { packageRoot } from '../../src/testbed/guest.ts';

/** What node-gyp would call; here they only tell that they were called. */
const COMPILERS = ['cc', 'c++', 'gcc', 'g++', 'make', 'python3', 'cmake', 'node-gyp'];

/** What the package needs, and what that needs: all of it comes along, so that the test needs no registry. */
function productionModules(): string[] {
  const lock = JSON.parse(readFileSync(path.join(packageRoot, 'package-lock.json'), 'utf8')) as {
    packages: Record<string, { dev?: true }>;
  };
  return Object.entries(lock.packages)
    .filter(([name, { dev }]) => name !== '' && !dev)
    .map(([name]) => path.join(packageRoot, name));
}

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'colo-npm-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

function run(command: string, args: string[], cwd: string, env: NodeJS.ProcessEnv = process.env) {
  const { status, stdout, stderr } = spawnSync(command, args, { cwd, encoding: 'utf8', env });
  return { status, stdout, stderr };
}

function located(name: string): string {
  return run('sh', ['-c', `readlink -f "$(command -v ${name})"`], folder).stdout.trim();
}

/** The package's content with this checkout's addon where prebuildify would put it. */
function staged(): string {
  const stage = path.join(folder, 'stage');
  const { files } = JSON.parse(readFileSync(path.join(packageRoot, 'package.json'), 'utf8')) as {
    files: string[];
  };
  for (const name of ['package.json', 'README.md', ...files.filter((file) => file !== 'prebuilds')])
    cpSync(path.join(packageRoot, name), path.join(stage, name), { recursive: true });
  const prebuilt = path.join(stage, 'prebuilds', `linux-${process.arch}`, 'colo-agent.node');
  cpSync(path.join(packageRoot, 'build', 'Release', 'colo_agent.node'), prebuilt);
  return stage;
}

/** A PATH with a shell, Node.js and false compilers. */
function bareMachine(): string {
  const bin = path.join(folder, 'bin');
  mkdirSync(bin);
  for (const name of ['sh', 'env', 'node']) symlinkSync(located(name), path.join(bin, name));
  for (const name of COMPILERS)
    writeFileSync(path.join(bin, name), `#!/bin/sh\necho ${name} >>'${folder}/compiled'\nexit 1\n`, {
      mode: 0o755,
    });
  return bin;
}

test('npm pack, npm install without a compiler, colo-agent', () => {
  const npm = located('npm');
  const pack = [staged(), ...productionModules()];
  const packed = run('npm', ['pack', '--ignore-scripts', '--pack-destination', folder, ...pack], folder);
  expect(packed.status, packed.stderr).toBe(0);
  const archives = readdirSync(folder).filter((name) => name.endsWith('.tgz'));
  expect(archives).toHaveLength(pack.length);

  const home = path.join(folder, 'home');
  mkdirSync(home);
  writeFileSync(path.join(home, 'package.json'), '{"private":true}');
  const env = { PATH: bareMachine(), HOME: home };
  const install = [
    'install',
    '--offline',
    '--no-audit',
    '--no-fund',
    ...archives.map((name) => `../${name}`),
  ];
  const installed = run('node', [npm, ...install], home, env);
  expect(installed.status, installed.stderr).toBe(0);
  expect(existsSync(path.join(folder, 'compiled'))).toBe(false);
  expect(existsSync(path.join(home, 'node_modules/colo-agent/build'))).toBe(false);

  const agent = path.join(home, 'node_modules', '.bin', 'colo-agent');
  expect(run(agent, ['--version'], home, env).stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
  const page = path.join(home, 'node_modules/colo-agent/dist/web/assets.js');
  const read = 'import(process.argv[1]).then((assets) => assets.readAssets())';
  expect(run('node', ['-e', read, page], home, env)).toMatchObject({ status: 0, stderr: '' });
  // The words are the addon's: it is there, and does something.
  const nobody = run(agent, ['estimate', '--qmp', '/nobody'], home, env);
  expect(nobody.stderr).toContain("can't connect to /nobody");
  expect(nobody.status).toBe(69);
});
