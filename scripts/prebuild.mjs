/**
 * prebuild.mjs: prebuilds/PLATFORM/colo-agent.node, by prebuildify. In a folder of its own, because node-gyp empties build/, where the addon of the checkout
 * lies; and without that folder's name in the result, so that the same sources give the same addon wherever they are built.
 */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { availableParallelism } from 'node:os';
import path from 'node:path';

const root = path.join(import.meta.dirname, '..');
const SOURCES = ['native/core', 'native/addon', 'native/sources.gypi', 'binding.gyp', 'package.json'];
const platform = `linux-${process.arch}`;

/** Builds it unless it was built from these very sources by this Node.js. Returns the addon's path. */
export function prebuild() {
  const addon = path.join(root, 'prebuilds', platform, 'colo-agent.node');
  const stamp = path.join(root, '.cache', 'prebuild.stamp');
  const made = digest();
  if (existsSync(addon) && existsSync(stamp) && readFileSync(stamp, 'utf8') === made) return addon;
  const folder = path.join(root, '.cache', 'prebuild');
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(path.join(folder, 'native'), { recursive: true });
  for (const name of SOURCES) cpSync(path.join(root, name), path.join(folder, name), { recursive: true });
  symlinkSync(path.join(root, 'node_modules'), path.join(folder, 'node_modules'));
  const flags = `${process.env.CXXFLAGS ?? ''} -ffile-prefix-map=${folder}=. -ffile-prefix-map=${root}=.`;
  execFileSync(path.join(root, 'node_modules', '.bin', 'prebuildify'), ['--napi', '--strip'], {
    cwd: folder,
    env: { ...process.env, CXXFLAGS: flags, JOBS: `${availableParallelism()}`, ...nodeHeaders() },
    stdio: ['ignore', 2, 2], // what comes after may print JSON
  });
  mkdirSync(path.dirname(addon), { recursive: true });
  cpSync(path.join(folder, 'prebuilds', platform, 'colo-agent.node'), addon);
  // A digest that the linker has made of the debugging information, too, which is gone by now but has known where it was compiled.
  execFileSync('strip', ['--remove-section=.note.gnu.build-id', addon], { stdio: ['ignore', 2, 2] });
  rmSync(folder, { recursive: true });
  mkdirSync(path.dirname(stamp), { recursive: true });
  writeFileSync(stamp, made);
  return addon;
}

/** Those that this Node.js was installed with: node-gyp would download them. */
function nodeHeaders() {
  const prefix = path.join(path.dirname(process.execPath), '..');
  const has = existsSync(path.join(prefix, 'include', 'node', 'node_api.h'));
  return has && !process.env.npm_config_nodedir ? { npm_config_nodedir: prefix } : {};
}

function digest() {
  const hash = createHash('sha256').update(`${process.version} ${process.env.CXXFLAGS ?? ''}`);
  for (const name of SOURCES)
    for (const file of filesOf(name)) hash.update(`${file}\0`).update(readFileSync(path.join(root, file)));
  return hash.digest('hex');
}

function filesOf(name) {
  if (/\.\w+$/.test(name)) return [name];
  return readdirSync(path.join(root, name))
    .sort()
    .map((file) => path.join(name, file));
}

if (process.argv[1] === import.meta.filename) process.stdout.write(`${prebuild()}\n`);
