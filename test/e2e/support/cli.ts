/** colo-agent as a command that ends by itself. */
import { execFile } from 'node:child_process';
import path from 'node:path';
import { packageRoot } from '../../../src/testbed/guest.ts';

export const MAIN = path.join(packageRoot, 'dist', 'cli', 'main.js');

export interface Ended {
  /** -1 when it was killed, because it took longer than a minute. */
  code: number;
  stdout: string;
  stderr: string;
}

export function colo(...args: string[]): Promise<Ended> {
  return new Promise((resolve) => {
    execFile(process.execPath, [MAIN, ...args], { timeout: 60_000 }, (error, stdout, stderr) => {
      resolve({ code: error ? Number(error.code ?? -1) : 0, stdout, stderr });
    });
  });
}
