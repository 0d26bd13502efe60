import type { Examined } from '../doctor/doctor.ts';
import type { Verdict } from '../doctor/finding.ts';

const COLUMNS = 80;
const WORDS: Record<Verdict, string> = { ok: 'ok', warn: 'warn', fail: 'FAIL', 'not asked': '-' };
const WORD_COLUMNS = 6;
const NAME_COLUMNS = 13;
const MARGIN = ' '.repeat(WORD_COLUMNS + NAME_COLUMNS);

/** For people: a block for each check, then what wasn't asked and why, and what it comes to. */
export function doctorText(examined: readonly Examined[]): string {
  const of = (verdict: Verdict) => examined.filter((each) => each.verdict === verdict);
  const silent = of('not asked');
  const reasons = [...new Set(silent.map(({ found }) => found))];
  const unasked = reasons.map((reason) => {
    const names = silent.filter(({ found }) => found === reason).map(({ name }) => name);
    return block('-', 'not asked', wrap(`${names.join(', ')}: ${reason}`));
  });
  const sum = `${of('ok').length} ok, ${of('warn').length} to look at, ${of('fail').length} failed, ${silent.length} not asked`;
  return [...examined.filter(({ verdict }) => verdict !== 'not asked').map(line), ...unasked, sum, ''].join(
    '\n',
  );
}

/** The blocks alone. */
export function findingsText(examined: readonly Examined[]): string {
  return examined.map(line).join('\n');
}

function line({ verdict, name, found, remedy }: Examined): string {
  const told = remedy === '' ? [] : wrap(`-> ${remedy}`, '   ');
  return block(WORDS[verdict], name, [...wrap(found), ...told]);
}

function block(word: string, name: string, lines: readonly string[]): string {
  const head = word.padEnd(WORD_COLUMNS) + name.padEnd(NAME_COLUMNS);
  return lines.map((text, index) => (index === 0 ? head : MARGIN) + text).join('\n');
}

/** A word that is longer than a line, a path say, stays whole. */
function wrap(text: string, indent = ''): string[] {
  const lines: string[] = [];
  for (const word of text.split(/\s+/).filter(Boolean)) {
    const last = lines.at(-1);
    if (last !== undefined && MARGIN.length + last.length + 1 + word.length <= COLUMNS)
      lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(last === undefined ? word : indent + word);
  }
  return lines;
}
