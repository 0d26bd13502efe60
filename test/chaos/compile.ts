import path from 'node:path';
import { run } from '../../src/testbed/child.ts';

/** Makes `output` from a C source of this folder. Rejects with the compiler's complaints. */
export async function compile(source: string, output: string, ...options: string[]): Promise<void> {
  const warnings = ['-Wall', '-Wextra', '-Wpedantic', '-Wshadow', '-Werror'];
  const file = path.join(import.meta.dirname, source);
  await run('cc', '-std=gnu11', '-O2', ...warnings, ...options, '-o', output, file);
}
