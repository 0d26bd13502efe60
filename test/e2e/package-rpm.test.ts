/** The RPMs, as `npm run package:rpm` builds them: the same each time, as rpmlint wants them, and of use where they are installed. */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { packageRoot } from '../../src/testbed/guest.ts';

const SPEC = path.join(packageRoot, 'packaging', 'rpm', 'colo-agent.spec');
const FILTERS = path.join(packageRoot, 'packaging', 'rpm', 'colo-agent.rpmlintrc');
const BUILD_MS = 120_000;
const { version } = json('package.json') as { version: string };

let folder: string;
let built: string[];
beforeAll(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'colo-package-'));
  built = build('first', '022', 'UTC');
}, BUILD_MS);
afterAll(() => rmSync(folder, { recursive: true }));

function json(name: string): unknown {
  return JSON.parse(readFileSync(path.join(packageRoot, name), 'utf8'));
}

function run(command: string, args: string[], env: NodeJS.ProcessEnv = {}): string {
  const ended = spawnSync(command, args, {
    cwd: packageRoot,
    encoding: 'utf8',
    env: { ...process.env, ...env },
  });
  expect(ended.status, `${command} ${args.join(' ')}\n${ended.stdout}\n${ended.stderr}`).toBe(0);
  return ended.stdout;
}

/** Where there is no commit to take the time from. */
const TIME = existsSync(path.join(packageRoot, '.git')) ? {} : { SOURCE_DATE_EPOCH: '1790000000' };

function build(name: string, umask: string, TZ: string): string[] {
  const script = `umask ${umask} && exec node scripts/package-rpm.mjs --as-built --out "$1"`;
  return run('sh', ['-c', script, 'sh', path.join(folder, name)], { ...TIME, TZ })
    .trim()
    .split('\n');
}

function query(format: string): string[] {
  return run('rpm', ['-qp', ...format.split(' '), built[0] as string])
    .trim()
    .split('\n');
}

test(
  'are the same, byte for byte, whenever and by whomever they are built',
  () => {
    const again = build('second', '077', 'Asia/Tokyo');
    expect(again.map((file) => path.basename(file))).toEqual(built.map((file) => path.basename(file)));
    for (const [index, file] of built.entries())
      expect(readFileSync(again[index] as string).equals(readFileSync(file)), file).toBe(true);
  },
  BUILD_MS,
);

test('rpmlint has nothing to say, and what it may not say has its reason', () => {
  expect(run('rpmlint', ['-r', FILTERS, SPEC, ...built])).toMatch(/ 0 errors, 0 warnings/);
  const paragraphs = readFileSync(FILTERS, 'utf8').split('\n\n');
  for (const paragraph of paragraphs) expect(paragraph).toMatch(/^# \S+ \S+/);
});

test('the specification has the version of package.json, and the bundle that is in it', () => {
  expect(query('--qf %{VERSION}')).toEqual([version]);
  const { packages } = json('package-lock.json') as {
    packages: Record<string, { version: string; dev?: true }>;
  };
  const bundled = Object.entries(packages)
    .filter(([name, { dev }]) => name === 'node_modules/node-addon-api' || (name !== '' && !dev))
    .map(([name, entry]) => `bundled(nodejs-${name.replace('node_modules/', '')}) = ${entry.version}`);
  expect(query('--provides').filter((line) => line.startsWith('bundled(nodejs-'))).toEqual(bundled.sort());
  const { engines } = json('package.json') as { engines: { node: string } };
  expect(query('--requires')).toContain(`nodejs(engine) ${engines.node.replace('>=', '>= ')}`);
  expect(query('--requires')).not.toContain('/usr/bin/env');
});

test('installed into a root of its own it starts there, makes its group and folders, and runs the demo', () => {
  const root = path.join(folder, 'root');
  // No scriptlets: there is no shell in this root.
  run('rpm', ['--root', root, '-i', '--nodeps', '--noscripts', ...built]);
  const agent = path.join(root, 'usr', 'bin', 'colo-agent');
  expect(run(agent, ['--version'])).toBe(`${version}\n`);
  expect(run(agent, ['estimate', '--help'])).toContain('--qmp');
  const page = path.join(root, 'usr/lib64/colo-agent/dist/web/assets.js');
  run('node', ['-e', 'import(process.argv[1]).then((assets) => assets.readAssets())', page]);
  expect(statSync(path.join(root, 'etc/colo-agent/tls')).mode & 0o777).toBe(0o700);
  expect(run(path.join(root, 'usr/lib/ocf/resource.d/colo/vm'), ['meta-data'])).toContain('name="promote"');
  run('systemd-sysusers', [`--root=${root}`, 'colo-agent.conf']);
  expect(readFileSync(path.join(root, 'etc', 'group'), 'utf8')).toMatch(/^colo-agent:/m);
  run('systemd-tmpfiles', [`--root=${root}`, '--create', 'colo-agent.conf']);
  expect(statSync(path.join(root, 'run/colo-agent')).mode & 0o777).toBe(0o750);
  const guest = { COLO_GUEST_FOLDER: path.join(packageRoot, '.cache', 'guest') };
  const shown = run(agent, ['demo', '--json'], guest);
  expect(JSON.parse(shown)).toMatchObject({ result: 'ok', stream: { gaps: 0, regressions: 0 } });
});
