/** A terminal that is drawn on and read key by key, and is given back as it was. */
import type { ReadStream, WriteStream } from 'node:tty';

/** Alternate screen, no cursor; and back (xterm's control sequences, which every terminal of today has). */
const ENTER = '\x1b[?1049h\x1b[?25l';
const LEAVE = '\x1b[?25h\x1b[?1049l';
const HOME = '\x1b[H';
const END_OF_LINE = '\x1b[K';
const END_OF_SCREEN = '\x1b[J';

/** A key that is held down comes many times at once; an arrow is a sequence of three. */
const KEYS = new RegExp(`${'\x1b'}\\[[A-Z]|[\\s\\S]`, 'g');

/** A terminal that can't say how large it is. */
const COLUMNS = 80;
const LINES = 24;

export class Screen {
  readonly #input: ReadStream;
  readonly #output: WriteStream;

  readonly #leave = (): void => {
    this.#input.setRawMode(false);
    this.#output.write(LEAVE);
  };

  constructor(input: ReadStream, output: WriteStream) {
    this.#input = input;
    this.#output = output;
  }

  /** Until close(), or until the process ends, unless by a signal that nobody handles. */
  open(onKey: (key: string) => void, onResize: () => void): void {
    process.once('exit', this.#leave);
    this.#output.write(ENTER);
    this.#output.on('resize', onResize);
    this.#input.setRawMode(true);
    this.#input.setEncoding('utf8');
    this.#input.on('data', (keys: string) => {
      for (const [key] of keys.matchAll(KEYS)) onKey(key);
    });
    this.#input.resume();
  }

  close(): void {
    process.off('exit', this.#leave);
    this.#leave();
    this.#input.removeAllListeners('data');
    this.#output.removeAllListeners('resize');
    this.#input.pause();
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
