/** Prometheus' own word on what is written for it; scripts/setup.sh fetches it. */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import path from 'node:path';

const root = path.join(import.meta.dirname, '..', '..');
const fetched = path.join(root, '.cache', 'promtool');

/** Runs it with `input` at its standard input. What it prints, and its exit code; throws when it isn't there. */
export function promtool(args: string[], input = ''): { code: number | null; output: string } {
  const command = existsSync(fetched) ? fetched : 'promtool';
  const { status, stdout, stderr, error } = spawnSync(command, args, { input, encoding: 'utf8', cwd: root });
  if (error) throw error;
  return { code: status, output: stdout + stderr };
}
