/**
 * package-rpm.mjs [--as-built] [--out FOLDER]: builds the RPMs by rpmbuild, also on Debian, and prints their paths. The same commit gives the same files:
 * times are those of the commit (or of SOURCE_DATE_EPOCH), names are sorted, owners are root. `--as-built`: with the addon and dist/ of the checkout as they
 * are, for tests; otherwise both are made from the sources.
 */
import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { prebuild } from './prebuild.mjs';

const root = path.join(import.meta.dirname, '..');
const { version } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'));
const { values: options } = parseArgs({
  options: {
    'as-built': { type: 'boolean', default: false },
    out: { type: 'string', default: path.join(root, '.cache', 'rpm') },
  },
});
/** What users read and programs need; the rest of the checkout is for who changes it. */
const CONTENT = ['guest', 'web', 'docs', 'packaging', 'package.json', 'LICENSE', 'README.md', 'CHANGELOG.md'];

const epoch =
  process.env.SOURCE_DATE_EPOCH ??
  execFileSync('git', ['log', '-1', '--format=%ct'], { cwd: root, encoding: 'utf8' }).trim();
const asBuilt = options['as-built'];
const addon = asBuilt ? 'build/Release/colo_agent.node' : prebuild();
const work = mkdtempSync(path.join(tmpdir(), 'colo-rpm-'));
try {
  archive(stage());
  rpmbuild();
  console.log(collect().join('\n'));
} finally {
  rmSync(work, { recursive: true });
}

function run(command, args, stdio = ['ignore', 'pipe', 2]) {
  return execFileSync(command, args, {
    cwd: root,
    encoding: 'utf8',
    env: { ...process.env, LC_ALL: 'C', TZ: 'UTC', SOURCE_DATE_EPOCH: epoch },
    stdio,
  });
}

function stage() {
  const folder = path.join(work, `colo-agent-${version}`);
  const copy = (from, to = from) =>
    cpSync(path.resolve(root, from), path.join(folder, to), {
      recursive: true,
      filter: (name) => !name.endsWith('.js.map'), // of sources that aren't in the package
    });
  for (const name of CONTENT) copy(name);
  if (asBuilt) copy('dist');
  else compile(path.join(folder, 'dist'));
  for (const name of productionModules()) copy(name);
  copy(addon, `prebuilds/linux-${process.arch}/colo-agent.node`);
  run('strip', ['--strip-all', path.join(folder, `prebuilds/linux-${process.arch}/colo-agent.node`)]);
  run(process.execPath, ['scripts/reference.mjs', path.join(folder, 'reference')]);
  return folder;
}

function compile(folder) {
  const compiler = path.join(root, 'node_modules', '.bin', 'tsc');
  run(compiler, ['-p', 'tsconfig.build.json', '--sourceMap', 'false', '--outDir', folder], ['ignore', 2, 2]);
}

/** What `npm ci --omit=dev` would install, from where it lies: nothing is downloaded. */
function productionModules() {
  const { packages } = JSON.parse(readFileSync(path.join(root, 'package-lock.json'), 'utf8'));
  return Object.entries(packages)
    .filter(([name, { dev, optional, devOptional }]) => name !== '' && !dev && !optional && !devOptional)
    .map(([name]) => name);
}

function archive(folder) {
  mkdirSync(path.join(work, 'SOURCES'));
  const file = path.join(work, 'SOURCES', `colo-agent-${version}.tar.gz`);
  const sameEverywhere = ['--sort=name', `--mtime=@${epoch}`, '--owner=0', '--group=0', '--numeric-owner'];
  const modes = '--mode=u=rwX,go=rX'; // of whatever umask the checkout was made under
  run('tar', [
    ...sameEverywhere,
    modes,
    '-C',
    path.dirname(folder),
    '-I',
    'gzip -n',
    '-cf',
    file,
    path.basename(folder),
  ]);
}

/** `--nodeps`: Debian's package manager knows what is installed, rpm doesn't. */
function rpmbuild() {
  const defines = {
    _topdir: work,
    _sourcedir: path.join(work, 'SOURCES'),
    _lib: 'lib64', // Fedora's, whatever the machine's rpm believes
  };
  run(
    'rpmbuild',
    [
      '-bb',
      '--nodeps',
      ...Object.entries(defines).flatMap(([name, value]) => ['--define', `${name} ${value}`]),
      'packaging/rpm/colo-agent.spec',
    ],
    ['ignore', 2, 2],
  );
}

function collect() {
  mkdirSync(options.out, { recursive: true });
  const built = path.join(work, 'RPMS');
  return readdirSync(built, { recursive: true }) // a folder for each architecture, and one for none
    .filter((name) => name.endsWith('.rpm'))
    .sort((a, b) => (path.basename(a) < path.basename(b) ? -1 : 1))
    .map((name) => {
      const file = path.join(options.out, path.basename(name));
      cpSync(path.join(built, name), file);
      return file;
    });
}
