/** Manual pages and completions, written from commander's tree by scripts/reference.mjs: they name every option, and the shells complete them. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { programTree } from '../../src/cli/program.ts';
import { packageRoot } from '../../src/testbed/guest.ts';

const PAGES = ['colo-agent.1', 'colo-agent.8', 'colo-agent.toml.5'];

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'colo-reference-'));
  run('node', ['scripts/reference.mjs', folder]);
});
afterAll(() => rmSync(folder, { recursive: true }));

function run(command: string, args: string[]): string {
  const { status, stdout, stderr } = spawnSync(command, args, {
    cwd: packageRoot,
    encoding: 'utf8',
    env: { ...process.env, LC_ALL: 'C.UTF-8', MANROFFSEQ: '' },
    timeout: 60_000,
  });
  expect(status, `${command} ${args.join(' ')}\n${stdout}\n${stderr}`).toBe(0);
  return stdout + stderr;
}

const file = (name: string) => path.join(folder, name);

test.each(PAGES)('%s is a page without a complaint of groff and mandoc', (page) => {
  expect(run('mandoc', ['-Tlint', '-W', 'warning', file(page)])).toBe('');
  expect(run('sh', ['-c', 'man --warnings -l "$1" 2>&1 >/dev/null', 'sh', file(page)])).toBe('');
  expect(readFileSync(file(page), 'utf8')).not.toMatch(/@[A-Z_]+@/);
});

test('every command and option is in colo-agent(1), and in each completion', () => {
  const manual = run('mandoc', ['-Tutf8', '-O', 'width=200', file('colo-agent.1')]).replaceAll(/.[\b]/g, '');
  const shells = ['colo-agent.bash', '_colo-agent'].map((name) => readFileSync(file(name), 'utf8'));
  const fish = readFileSync(file('colo-agent.fish'), 'utf8');
  for (const command of programTree().commands) {
    expect(manual).toContain(`colo-agent ${command.name()}`);
    for (const { long, description } of command.options) {
      if (long === undefined || long === null) continue;
      expect(manual, description).toContain(long);
      for (const text of shells) expect(text).toContain(long);
      expect(fish).toContain(`-l ${long.slice(2)} `);
    }
  }
});

test('each option that primary and secondary have is a key in colo-agent.toml(5)', () => {
  const manual = run('mandoc', ['-Tutf8', '-O', 'width=200', file('colo-agent.toml.5')]).replaceAll(
    /.[\b]/g,
    '',
  );
  for (const key of ['witness', 'interval', 'ungated', 'fence-command', 'overwrite-disk', 'no-shadow'])
    expect(manual).toMatch(new RegExp(`^ +${key} = `, 'm'));
});

/** What a completion offers for the last of these words. */
const SHELLS: Record<string, (words: string[]) => string[]> = {
  bash: (words) => {
    const script = `source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _colo_agent; printf '%s\\n' "\${COMPREPLY[@]}"`;
    return run('bash', ['-c', script, 'bash', file('colo-agent.bash'), ...words])
      .trim()
      .split('\n');
  },
  fish: (words) =>
    run('fish', ['-c', `source ${file('colo-agent.fish')}; complete -C '${words.join(' ')}'`])
      .trim()
      .split('\n')
      .map((line) => line.split('\t')[0] as string),
};

test.each(Object.keys(SHELLS))('%s completes commands, options and choices', (shell) => {
  const offered = SHELLS[shell] as (words: string[]) => string[];
  run(shell, ['-n', file(`colo-agent.${shell}`)]);
  expect(offered(['colo-agent', 'seco'])).toEqual(['secondary']);
  expect(offered(['colo-agent', ''])).toEqual(expect.arrayContaining(['primary', 'drill', 'demo']));
  expect(offered(['colo-agent', 'primary', '--mo'])).toEqual(['--mode']);
  expect(offered(['colo-agent', 'primary', '--mode', ''])).toEqual(['pipelined', 'strict']);
  expect(offered(['colo-agent', 'primary', '--qmp', file('colo-agent.ba')])).toContain(
    file('colo-agent.bash'),
  );
  expect(offered(['colo-agent', 'primary', '--vm', ''])).toEqual(['']);
  expect(offered(['colo-agent', 'status', '--mo'])).toEqual(['']);
});

test('bash, which divides --option=value, completes the value', () => {
  const offered = SHELLS['bash'] as (words: string[]) => string[];
  expect(offered(['colo-agent', 'primary', '--mode', '=', 'st'])).toEqual(['strict']);
  expect(offered(['colo-agent', 'primary', '--mode', '='])).toEqual(['pipelined', 'strict']);
});

test('zsh completes commands and choices, as somebody types them', () => {
  run('zsh', ['-n', file('_colo-agent')]);
  // A shell on a terminal of its own; what stands on its screen is what it completed.
  const session = `
    zmodload zsh/zpty
    zpty shell "PS1= TERM=dumb zsh -f -i"
    zpty -w shell "fpath=(${folder} \\$fpath); autoload -Uz compinit; compinit -u -D; echo LOA''DED"
    zpty -r -m shell text '*LOADED*' || exit 1
    zpty -w -n shell $'colo-agent secon\\t'
    zpty -r -m shell text '*secondary*' || exit 2
    zpty -w -n shell $'--log-level deb\\t'
    zpty -r -m shell text '*debug*' || exit 3
    zpty -d shell`;
  run('zsh', ['-f', '-c', session]);
});
