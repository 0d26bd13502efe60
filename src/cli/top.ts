import { setTimeout as sleep } from 'node:timers/promises';
import { Command } from 'commander';
import { ControlError } from '../agent/control-server.ts';
import { frame, plainTable, rowsVisible, type View } from '../top/frame.ts';
import { type Row, SORTS } from '../top/rows.ts';
import { Screen } from '../top/screen.ts';
import { Watch } from '../top/watch.ts';
import { onlyControlPath } from './control-path.ts';
import { CliError, EXIT } from './exit-codes.ts';
import { integer } from './option-parsers.ts';
import { onTerminationSignal } from './signals.ts';

interface TopCliOptions {
  control?: string;
  interval: number;
  once?: boolean;
}

const ONCE_COLUMNS = 80;
const [UP, DOWN, CTRL_C] = ['\x1b[A', '\x1b[B', '\x03'];

export function topCommand(): Command {
  return new Command('top')
    .description(
      'Watch all VMs of this host on a terminal: state, age of the last checkpoint, pause, dirty pages and bytes a second, held output',
    )
    .option(
      '--control <socket>',
      "the daemon's or an agent's control socket (default: the daemon's, or the only one in /run/colo-agent)",
    )
    .option('--interval <ms>', 'between two looks', integer(100, 60_000), 1000)
    .option('--once', 'print one look as plain text, and end')
    .action(runTop);
}

async function runTop({ control, interval, once }: TopCliOptions): Promise<void> {
  const watch = new Watch(control ?? onlyControlPath(null));
  if (once) {
    await watch.rows();
    await sleep(interval); // a rate needs two looks
    const lines = plainTable(await watch.rows(), process.stdout.columns ?? ONCE_COLUMNS);
    // As below.
    process.stdout.write(`${lines.join('\n')}\n`, () => process.exit());
    return;
  }
  if (!process.stdin.isTTY || !process.stdout.isTTY)
    throw new CliError(EXIT.usage, '`top` needs a terminal: use `top --once`, `status --watch` or `list`');
  await new Top(watch, interval).run();
  // The pause between two looks, or an agent that has not answered, would hold the process.
  process.exit();
}

/** One that somebody looks at. */
class Top {
  readonly #watch: Watch;
  readonly #intervalMs: number;
  readonly #screen = new Screen(process.stdin, process.stdout);
  #view: Pick<View, 'sort' | 'scroll'> = { sort: 'name', scroll: 0 };
  #rows: Row[] = [];
  #trouble: string | null = null;
  readonly #ended: Promise<void>;
  #end: () => void = () => {};

  constructor(watch: Watch, intervalMs: number) {
    this.#watch = watch;
    this.#intervalMs = intervalMs;
    this.#ended = new Promise((resolve) => {
      this.#end = resolve;
    });
  }

  /** Until somebody ends it. Rejects when nobody answers at the beginning, before the terminal is touched. */
  async run(): Promise<void> {
    this.#rows = await this.#watch.rows();
    onTerminationSignal(() => this.#end());
    this.#screen.open(
      (key) => this.#onKey(key),
      () => this.#draw(),
    );
    try {
      for (;;) {
        this.#draw();
        if (await this.#passes(sleep(this.#intervalMs))) return;
        if (await this.#passes(this.#look())) return;
      }
    } finally {
      this.#screen.close();
    }
  }

  /** Resolves when that is done, or with true when it is to end before. */
  #passes(work: Promise<void>): Promise<boolean> {
    return Promise.race([this.#ended.then(() => true), work.then(() => false)]);
  }

  /** A daemon that is being restarted is waited for. */
  async #look(): Promise<void> {
    try {
      this.#rows = await this.#watch.rows();
      this.#trouble = null;
    } catch (error) {
      if (!(error instanceof ControlError)) throw error;
      this.#trouble = error.message;
    }
  }

  #onKey(key: string): void {
    const { sort, scroll } = this.#view;
    if (key === 'q' || key === CTRL_C) this.#end();
    else if (key === 's')
      this.#view = { sort: SORTS[(SORTS.indexOf(sort) + 1) % SORTS.length] ?? 'name', scroll: 0 };
    else if (key === UP || key === 'k') this.#view = { sort, scroll: scroll - 1 };
    else if (key === DOWN || key === 'j') this.#view = { sort, scroll: scroll + 1 };
    this.#draw();
  }

  #draw(): void {
    const size = this.#screen.size;
    const scrollMax = Math.max(0, this.#rows.length - rowsVisible(size));
    this.#view.scroll = Math.min(Math.max(0, this.#view.scroll), scrollMax);
    const clock = new Date().toTimeString().slice(0, 8);
    const colours = !process.env['NO_COLOR'];
    this.#screen.draw(frame(this.#rows, { ...size, ...this.#view, colours, clock, trouble: this.#trouble }));
  }
}
