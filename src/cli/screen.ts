/** Painting over what a terminal shows, again and again. */

const HOME = '\x1b[H';
const CLEAR_SCREEN = '\x1b[2J';
const CLEAR_LINE_END = '\x1b[K';
const CLEAR_BELOW = '\x1b[J';

/**
 * What puts `text` in place of what stands there: over it, line by line, so that nothing flickers. Cut to the terminal, because what scrolls can't be painted
 * over. `first`: nothing of ours stands there yet.
 */
export function repaint(text: string, columns: number, rows: number, first: boolean): string {
  const all = text.split('\n');
  // The last row is left to the cursor.
  const room = Math.max(1, rows - 1);
  const shown =
    all.length <= room ? all : [...all.slice(0, room - 1), `... and ${all.length - room + 1} more`];
  const lines = shown.map((line) => `${cut(line, columns)}${CLEAR_LINE_END}\n`);
  return `${first ? CLEAR_SCREEN : ''}${HOME}${lines.join('')}${CLEAR_BELOW}`;
}

function cut(line: string, columns: number): string {
  const letters = [...line];
  return letters.length <= columns ? line : letters.slice(0, columns).join('');
}
