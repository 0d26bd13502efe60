/** A take-over for people: what it came to, and a line for each step with a bar where its time lies; within 80 columns. */
import type { Decision, TakeOverRecord, TakeOverStep } from '../agent/take-over-record.ts';

const WIDTH = 80;
const BAR = 24;
const NUMBER = 10;
const WHAT = WIDTH - 2 * NUMBER - BAR - 4;

const DECISIONS: Record<Exclude<Decision, null>, string> = {
  witness: 'the witness',
  person: 'a person',
  primary: 'the primary, which handed it over',
  nobody: 'nobody: there is no witness',
};

export function takeOverText(record: TakeOverRecord): string {
  const { id, vm, outcome, reason, cause, generation, epoch, beganAt, tookMs, decidedBy, steps } = record;
  const came =
    outcome === 'took-over'
      ? `${vm} took over at checkpoint ${epoch}, in generation ${generation}`
      : `${vm} gave its take-over at checkpoint ${epoch} up: ${reason}`;
  return [
    ...wrapped(`${id}: ${came}`, WIDTH),
    `began    ${beganAt}`,
    ...wrapped(`cause    ${cause}`, WIDTH, ' '.repeat(9)),
    `decided  ${decidedBy === null ? 'nothing was' : DECISIONS[decidedBy]}`,
    `took     ${tookMs.toFixed(1)} ms, from the first sign until ${outcome === 'took-over' ? 'the guest ran here' : 'it was given up'}`,
    '',
    `${'at ms'.padStart(NUMBER)}${'took ms'.padStart(NUMBER)}`,
    ...steps.flatMap((step) => stepLines(step, tookMs)),
  ].join('\n');
}

function stepLines({ what, atMs, tookMs, detail }: TakeOverStep, wholeMs: number): string[] {
  const number = (ms: number | null) => (ms === null ? '' : ms.toFixed(1)).padStart(NUMBER);
  const line = `${number(atMs)}${number(tookMs)}  ${what.padEnd(WHAT)}  ${bar(atMs, tookMs ?? 0, wholeMs)}`;
  const indent = ' '.repeat(2 * NUMBER + 4);
  return [line.trimEnd(), ...wrapped(detail === '' ? '' : indent + detail, WIDTH, indent)];
}

/** A moment is a `|`; what took its time, at least a `#`. */
function bar(atMs: number, tookMs: number, wholeMs: number): string {
  const place = (ms: number) =>
    Math.floor((Math.min(ms, wholeMs) / Math.max(wholeMs, Number.MIN_VALUE)) * (BAR - 1));
  const [from, to] = [place(atMs), place(atMs + tookMs)];
  return ' '.repeat(from) + (tookMs === 0 ? '|' : '#'.repeat(to - from + 1));
}

/** Lines but the first one begin with `indent`. */
function wrapped(text: string, width: number, indent = ''): string[] {
  const lines: string[] = [];
  // What stands before the first word, and between two words of it, stays: they may be columns.
  for (const word of text.match(/^\s*\S+(\s{2,}\S+)*|\S+/g) ?? []) {
    const last = lines.at(-1);
    if (last === undefined) lines.push(word);
    else if (last.length + 1 + word.length <= width) lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(indent + word);
  }
  return lines;
}
