/** A TOML file as a list of what stands in it, each with its place. */
import { type AST, getStaticTOMLValue, ParseError, parseTOML } from 'toml-eslint-parser';

export interface Entry {
  /** Table and key: ["vm", "web1", "interval"]. A table's own entry has no value. */
  path: readonly string[];
  value: unknown;
  /** FILE:LINE:COLUMN, counted from 1. */
  place: string;
}

/** What is wrong with a configuration, all of it: each says where, what, and what to do. */
export class ConfigError extends Error {
  readonly problems: readonly string[];

  constructor(problems: readonly string[]) {
    super(problems.join('\n'));
    this.name = 'ConfigError';
    this.problems = problems;
  }
}

/** Throws ConfigError for what is no TOML; it refuses keys and tables that are there twice, too. */
export function readToml(file: string, text: string): Entry[] {
  try {
    const [top] = parseTOML(text, { tomlVersion: '1.0.0' }).body;
    return top.body.flatMap((node) => entriesOf(file, [], node));
  } catch (error) {
    if (!(error instanceof ParseError)) throw error;
    const { lineNumber, column, message } = error;
    const remedy = /multiple times/.test(message) ? ': one of the two must go' : '';
    throw new ConfigError([`${file}:${lineNumber}:${column + 1}: this is no TOML: ${message}${remedy}`]);
  }
}

function entriesOf(file: string, above: readonly string[], node: AST.TOMLKeyValue | AST.TOMLTable): Entry[] {
  const path = [...above, ...node.key.keys.map((key) => (key.type === 'TOMLBare' ? key.name : key.value))];
  const { line, column } = node.key.loc.start;
  const place = `${file}:${line}:${column + 1}`;
  if (node.type === 'TOMLTable') {
    if (node.kind === 'array')
      throw new ConfigError([
        `${place}: [[${path.join('.')}]] is a list of tables: write [${path.join('.')}]`,
      ]);
    return [{ path, value: undefined, place }, ...node.body.flatMap((each) => entriesOf(file, path, each))];
  }
  if (node.value.type === 'TOMLInlineTable') {
    const inner = node.value.body.flatMap((each) => entriesOf(file, path, each));
    return [{ path, value: undefined, place }, ...inner];
  }
  return [{ path, value: getStaticTOMLValue(node.value), place }];
}
