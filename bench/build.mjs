/** The benchmark's native programs, built by CMake when they are older than what they are made from. */
import { execFileSync } from 'node:child_process';
import { availableParallelism } from 'node:os';

const FOLDER = 'build-test/bench';
const OPTIONS = ['-DCMAKE_BUILD_TYPE=Release', '-DCOLO_BENCH=ON', '--log-level=WARNING'];
let built = false;

/** The path of `core_bench` or `synthetic_guest`. */
export function nativeProgram(name) {
  if (!built) {
    run('cmake', '-S', '.', '-B', FOLDER, ...OPTIONS);
    const targets = ['--target', 'core_bench', 'synthetic_guest'];
    run(
      'cmake',
      '--build',
      FOLDER,
      ...targets,
      '--parallel',
      String(availableParallelism()),
      '--',
      '--quiet',
    );
    built = true;
  }
  return `${FOLDER}/${name}`;
}

function run(command, ...args) {
  execFileSync(command, args, { stdio: ['ignore', 'ignore', 'inherit'] });
}
