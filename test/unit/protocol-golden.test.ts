/** Whole conversations, as texts to read. COLO_UPDATE_GOLDEN=1 writes what the machines do now into the files, for review. */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { Conversation, type GoldenOptions } from './protocol-golden.ts';

const folder = path.join(import.meta.dirname, 'protocol-golden');
const DEFAULTS: GoldenOptions = {
  mode: 'pipelined',
  auto: false,
  witness: false,
  foreign: false,
  tookOver: false,
  forced: false,
  tookPart: false,
  record: true,
  disks: false,
  generation: 1,
  standbyGeneration: 0,
};

/** The first line that begins with `options` sets them: `options mode=strict auto=true`. */
function optionsOf(text: string): GoldenOptions {
  const words = /^options (.*)$/m.exec(text)?.[1]?.split(' ') ?? [];
  const parsed = words.map((word) => {
    const [key = '', value = ''] = word.split('=');
    return [key, key === 'mode' ? value : JSON.parse(value)];
  });
  return { ...DEFAULTS, ...Object.fromEntries(parsed) };
}

function replay(text: string): string {
  const conversation = new Conversation(optionsOf(text));
  const lines = text.split('\n').filter((line) => line === '' || /^(#|>|options)/.test(line));
  return lines
    .flatMap((line) => (line.startsWith('>') ? [line, ...conversation.run(line.slice(1))] : [line]))
    .join('\n');
}

describe('golden conversations', () => {
  test.each(readdirSync(folder))('%s', (name) => {
    const file = path.join(folder, name);
    const expected = readFileSync(file, 'utf8');
    const actual = replay(expected);
    if (process.env['COLO_UPDATE_GOLDEN'] === '1') writeFileSync(file, actual);
    else expect(actual).toBe(expected);
  });
});
