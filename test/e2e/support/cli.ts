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

/** As colo(), behind a command that sets the scene (see Child), and with something on its standard input. */
export function coloWithin(prefix: readonly string[], input: string, ...args: string[]): Promise<Ended> {
  const [file = '', ...rest] = [...prefix, process.execPath, MAIN, ...args];
  return new Promise((resolve) => {
    const child = execFile(file, rest, { timeout: 60_000 }, (error, stdout, stderr) => {
      resolve({ code: error ? Number(error.code ?? -1) : 0, stdout, stderr });
    });
    child.stdin?.end(input);
  });
}
