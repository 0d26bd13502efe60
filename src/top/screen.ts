/** A terminal that is drawn on and read key by key, and is given back as it was. */
import type { ReadStream, WriteStream } from 'node:tty';

/** Alternate screen, no cursor; and back (xterm's control sequences, which every terminal of today has). */
const ENTER = '\x1b[?1049h\x1b[?25l';
const LEAVE = '\x1b[?25h\x1b[?1049l';
const HOME = '\x1b[H';
const END_OF_LINE = '\x1b[K';
const END_OF_SCREEN = '\x1b[J';

/** A terminal that can't say how large it is. */
const COLUMNS = 80;
const LINES = 24;

export class Screen {
  readonly #input: ReadStream;
  readonly #output: WriteStream;

  constructor(input: ReadStream, output: WriteStream) {
    this.#input = input;
    this.#output = output;
  }

  open(onKey: (key: string) => void, onResize: () => void): void {
    this.#output.write(ENTER);
    this.#output.on('resize', onResize);
    this.#input.setRawMode(true);
    this.#input.setEncoding('utf8');
    this.#input.on('data', onKey);
    this.#input.resume();
  }

  close(): void {
    this.#input.removeAllListeners('data');
    this.#output.removeAllListeners('resize');
    this.#input.setRawMode(false);
    this.#input.pause();
    this.#output.write(LEAVE);
  }

  get size(): { columns: number; lines: number } {
    // 0 where nobody has told the terminal.
    return { columns: this.#output.columns || COLUMNS, lines: this.#output.rows || LINES };
  }

  /** Over what is there, so that nothing flickers. */
  draw(lines: readonly string[]): void {
    this.#output.write(HOME + lines.map((line) => line + END_OF_LINE).join('\r\n') + END_OF_SCREEN);
  }
}
