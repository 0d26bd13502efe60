/**
 * reference.mjs FOLDER: the manual pages and the shells' completions, from commander's tree (dist/cli/program.js) and packaging/man. One truth: an
 * option that exists is in all of them, and no other. The same sources and the same SOURCE_DATE_EPOCH give the same bytes.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { EXIT } from '../dist/cli/exit-codes.js';
import { programTree } from '../dist/cli/program.js';
import { bashCompletion, fishCompletion, zshCompletion } from './reference-completions.mjs';
import { commandSections, filled, keyParagraphs } from './reference-man.mjs';
import { commandsOf } from './reference-tree.mjs';

/** Not a key of a VM: the table's name says it, or the daemon does it for all. */
const NOT_KEYS = ['help', 'vm', 'qmp', 'libvirt', 'control', 'json', 'log-level', 'node', 'state-dir'];

const root = path.join(import.meta.dirname, '..');
const folder = process.argv[2];
if (folder === undefined) throw new Error('usage: node scripts/reference.mjs FOLDER');

const program = programTree();
const commands = commandsOf(program);
const values = {
  VERSION: program.version(),
  DATE: new Date(Number(process.env.SOURCE_DATE_EPOCH ?? 0) * 1000).toISOString().slice(0, 10),
  COMMANDS: commandSections(commands),
  VM_KEYS: keyParagraphs(commands, ['primary', 'secondary'], NOT_KEYS),
  ...Object.fromEntries(Object.entries(EXIT).map(([name, code]) => [`EXIT_${name.toUpperCase()}`, code])),
};

for (const page of ['colo-agent.1', 'colo-agent.8', 'colo-agent.toml.5'])
  write(page, filled(readFileSync(path.join(root, 'packaging', 'man', page), 'utf8'), values));
write('colo-agent.bash', bashCompletion(commands));
write('_colo-agent', zshCompletion(commands));
write('colo-agent.fish', fishCompletion(commands));

function write(name, text) {
  mkdirSync(folder, { recursive: true });
  writeFileSync(path.join(folder, name), text.endsWith('\n') ? text : `${text}\n`);
}
