/** packaging/ocf/vm as Pacemaker would call it, against a daemon of the test's own. */
import { spawn } from 'node:child_process';
import { chmodSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { packageRoot } from '../../../src/testbed/guest.ts';
import { MAIN } from './cli.ts';

export const AGENT = path.join(packageRoot, 'packaging', 'ocf', 'vm');

/** OCF's codes, by their names there. */
export const OCF = {
  SUCCESS: 0,
  ERR_GENERIC: 1,
  ERR_ARGS: 2,
  ERR_UNIMPLEMENTED: 3,
  ERR_INSTALLED: 5,
  ERR_CONFIGURED: 6,
  NOT_RUNNING: 7,
  RUNNING_PROMOTED: 8,
  FAILED_PROMOTED: 9,
} as const;

export interface OcfAnswer {
  code: number | null;
  stdout: string;
  stderr: string;
}

/** The program `colo-agent` of this checkout, in `folder`. */
export function launcherIn(folder: string): string {
  const file = path.join(folder, 'colo-agent');
  writeFileSync(file, `#!/bin/sh\nexec '${process.execPath}' '${MAIN}' "$@"\n`);
  chmodSync(file, 0o755);
  return file;
}

/** An instance of the clone, on one host. */
export class OcfInstance {
  readonly #shell: string;
  readonly #parameters: Record<string, string>;

  /** `shell`: what takes /bin/sh's place. */
  constructor(shell: string, parameters: Record<string, string>) {
    this.#shell = shell;
    this.#parameters = parameters;
  }

  /** `more`: parameters, or what Pacemaker says of the operation (`CRM_meta_timeout`, in milliseconds). */
  run(action: string, more: Record<string, string> = {}): Promise<OcfAnswer> {
    const parameters = {
      CRM_meta_timeout: '60000',
      CRM_meta_interval: '10000',
      ...this.#parameters,
      ...more,
    };
    const env = Object.fromEntries(
      Object.entries(parameters).map(([name, value]) => [`OCF_RESKEY_${name}`, value]),
    );
    const child = spawn(this.#shell, [AGENT, action], {
      env: {
        PATH: process.env['PATH'],
        OCF_ROOT: '/usr/lib/ocf',
        OCF_RESOURCE_INSTANCE: 'web1',
        __OCF_ACTION: action,
        ...env,
      },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
    });
    return new Promise((resolve, reject) => {
      child.on('error', reject);
      child.on('close', (code) => resolve({ code, stdout, stderr }));
    });
  }
}
