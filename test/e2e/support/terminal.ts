/** colo-agent on a terminal of its own: script(1) of util-linux makes it, of 80 columns and 24 lines. */
import { type ChildProcess, spawn } from 'node:child_process';
import { stripVTControlCharacters } from 'node:util';
import { waitFor } from '../../../src/testbed/wait.ts';
import { MAIN } from './cli.ts';

const SIZE = 'stty columns 80 rows 24; exec "$0" "$@"';

export class TestTerminal {
  /** Everything that it was sent. */
  output = '';
  /** With the exit code. */
  readonly ended: Promise<number | null>;
  readonly #child: ChildProcess;

  constructor(args: readonly string[]) {
    const command = ['sh', '-c', SIZE, process.execPath, MAIN, ...args].map((word) => `'${word}'`).join(' ');
    const options = ['--quiet', '--return', '--flush', '--command', command, '/dev/null'];
    this.#child = spawn('script', options, { stdio: ['pipe', 'pipe', 'inherit'] });
    this.#child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      this.output += text;
    });
    this.ended = new Promise((resolve) => this.#child.once('close', resolve));
  }

  type(keys: string): void {
    this.#child.stdin?.write(keys);
  }

  /** Until that has stood on it. */
  async waitFor(text: RegExp): Promise<void> {
    const seen = () => stripVTControlCharacters(this.output).replaceAll('\r', '');
    await waitFor(
      `${text} on the terminal`,
      60_000,
      () => text.test(seen()),
      () => `; it shows\n${seen().slice(-4000)}`,
    );
  }

  /** script passes its end on to what runs on the terminal. */
  async destroy(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    this.#child.kill('SIGTERM');
    await this.ended;
  }
}
