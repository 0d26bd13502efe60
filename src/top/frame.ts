/** The picture of `colo-agent top`: rows in, lines out, none of them wider than the terminal. */
import { type Row, SORTS, type Sort, sorted } from './rows.ts';

export interface View {
  /** Of the terminal. */
  columns: number;
  lines: number;
  colours: boolean;
  sort: Sort;
  /** How many rows are scrolled out at the top. */
  scroll: number;
  /** The time of day. */
  clock: string;
  /** Why the rows are old; null: they aren't. */
  trouble: string | null;
}

const NONE = '-';
/** By what they mean, not by what they look like: all is well, look at it, act. */
const COLOURS: Record<string, string> = {
  PROTECTED: '\x1b[32m',
  STANDBY: '\x1b[32m',
  BLOCKED: '\x1b[31m',
  REFUSED: '\x1b[31m',
  FENCED: '\x1b[31m',
  'NO ANSWER': '\x1b[31m',
};
const ATTENTION = '\x1b[33m';
const REVERSE = '\x1b[7m';
const RESET = '\x1b[0m';

interface Column {
  title: string;
  width: number;
  right?: true;
  cell(row: Row): string;
}

const VM_WIDTH = 16;
const ROLE_WIDTH = 7;
const STATE_WIDTH = 11;
const STATE_AT = VM_WIDTH + ROLE_WIDTH + 2;

/** 78 wide with the spaces between them; the reason takes what a wider terminal has left. */
const COLUMNS: readonly Column[] = [
  { title: 'VM', width: VM_WIDTH, cell: ({ vm }) => vm },
  {
    title: 'ROLE',
    width: ROLE_WIDTH,
    cell: ({ role }) => (role === 'secondary' ? 'standby' : (role ?? NONE)),
  },
  { title: 'STATE', width: STATE_WIDTH, cell: ({ state }) => state },
  { title: 'AGE', width: 6, right: true, cell: ({ ageMs }) => ageText(ageMs) },
  { title: 'PAUSE p50/99', width: 12, right: true, cell: pauseText },
  {
    title: 'DIRTY/s',
    width: 7,
    right: true,
    cell: ({ dirtyPagesPerSecond }) => countText(dirtyPagesPerSecond),
  },
  { title: 'B/s', width: 6, right: true, cell: ({ bytesPerSecond }) => countText(bytesPerSecond) },
  { title: 'HELD', width: 6, right: true, cell: ({ heldBytes }) => countText(heldBytes) },
];
const TABLE_WIDTH = COLUMNS.reduce((sum, { width }) => sum + width + 1, -1);
const REASON_WIDTH_MIN = 20;
/** Two above the rows, one below. */
const FURNITURE = 3;

/** As many rows as there is place for. */
export function rowsVisible({ lines }: Pick<View, 'lines'>): number {
  return Math.max(0, lines - FURNITURE);
}

/** `lines` lines, or fewer. */
export function frame(rows: readonly Row[], view: View): string[] {
  const { columns, sort, scroll } = view;
  const shown = sorted(rows, sort).slice(scroll, scroll + rowsVisible(view));
  const titles = COLUMNS.map((column) => aligned(column, column.title)).join(' ');
  const title = cut(hasReason(columns) ? `${titles} REASON` : titles, columns);
  return [
    cut(summaryLine(rows, view), columns),
    view.colours ? `${REVERSE}${title.padEnd(columns)}${RESET}` : title,
    ...shown.map((row) => rowLine(row, view)),
    cut(keysLine(rows.length, shown.length, view), columns),
  ].slice(0, view.lines);
}

/** All of them, without furniture that only a person at a terminal needs. */
export function plainTable(rows: readonly Row[], columns: number): string[] {
  const lines = rows.length + FURNITURE;
  const still = { colours: false, sort: 'name', scroll: 0, clock: '', trouble: null } as const;
  const view: View = { columns, lines, ...still };
  return frame(rows, view).slice(1, -1);
}

function rowLine(row: Row, { columns, colours }: View): string {
  const cells = COLUMNS.map((column) => aligned(column, column.cell(row)));
  const table = cut(cells.join(' '), columns);
  const reason = hasReason(columns) ? ` ${cut(printable(row.reason), columns - TABLE_WIDTH - 1)}` : '';
  const line = (table + reason).trimEnd();
  return colours ? coloured(line, row.state) : line;
}

function coloured(line: string, state: string): string {
  const end = STATE_AT + STATE_WIDTH;
  if (line.length < end) return line; // a terminal too narrow for the state
  const colour = COLOURS[state] ?? ATTENTION;
  return line.slice(0, STATE_AT) + colour + line.slice(STATE_AT, end) + RESET + line.slice(end);
}

function hasReason(columns: number): boolean {
  return columns >= TABLE_WIDTH + 1 + REASON_WIDTH_MIN;
}

function summaryLine(rows: readonly Row[], { clock, trouble }: View): string {
  if (trouble !== null) return `colo-agent top  ${clock}  ${printable(trouble)}`;
  const counts = new Map<string, number>();
  for (const { state } of rows) counts.set(state, (counts.get(state) ?? 0) + 1);
  const words = [...counts].sort(([, a], [, b]) => b - a).map(([state, count]) => `${count} ${state}`);
  const vms = `${rows.length} VM${rows.length === 1 ? '' : 's'}`;
  return `colo-agent top  ${clock}  ${[vms, ...words].join(', ')}`;
}

function keysLine(all: number, shown: number, { scroll, sort }: View): string {
  const sorts = SORTS.map((each) => (each === sort ? `[${each}]` : each)).join(' ');
  const range = shown < all ? `  ${scroll + 1}-${scroll + shown} of ${all}, up/down` : '';
  return `q quit  s sort: ${sorts}${range}`;
}

function aligned({ width, right }: Column, text: string): string {
  const fitting = cut(printable(text), width);
  return right ? fitting.padStart(width) : fitting.padEnd(width);
}

/** What is left out is seen to be. */
function cut(text: string, width: number): string {
  return text.length <= width
    ? text
    : `${text.slice(0, Math.max(0, width - 1))}~`.slice(0, Math.max(0, width));
}

/** Nothing that moves the cursor, and nothing that a terminal may show wider than it is long. */
function printable(text: string): string {
  return text.replace(/[^\x20-\x7e]/gu, '?');
}

function ageText(ms: number | null): string {
  if (ms === null) return NONE;
  if (ms < 9950) return `${(ms / 1000).toFixed(1)}s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 100) return `${seconds}s`;
  if (seconds < 6000) return `${Math.floor(seconds / 60)}m`;
  return `${Math.floor(seconds / 3600)}h`;
}

function pauseText({ pauseMs: { p50, p99 } }: Row): string {
  return p50 === null || p99 === null ? NONE : `${digits(p50)}/${digits(p99)}ms`;
}

function digits(ms: number): string {
  return ms < 10 ? ms.toFixed(1) : ms.toFixed(0);
}

/** At most five letters. */
function countText(count: number | null): string {
  if (count === null) return NONE;
  for (const [unit, size] of [
    ['', 1],
    ['k', 1e3],
    ['M', 1e6],
    ['G', 1e9],
  ] as const) {
    const value = count / size;
    if (value < 9.95 && unit !== '') return `${value.toFixed(1)}${unit}`;
    if (value < 999.5) return `${value.toFixed(0)}${unit}`;
  }
  return `${(count / 1e12).toFixed(0)}T`;
}
