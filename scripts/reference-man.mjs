/** Manual pages in man(7)'s language. */

/** As text in a page: nothing in it is a request or an escape. */
export function roff(text) {
  return text
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replaceAll(/^([.'])/gm, '\\&$1')
    .replaceAll('"', '\\(dq')
    .replaceAll('`', '');
}

const bold = (text) => `\\fB${roff(text)}\\fR`;
const italic = (text) => `\\fI${roff(text)}\\fR`;

/** The part of colo-agent(1) that commander knows: a section for each command. */
export function commandSections(commands) {
  return commands
    .filter(({ path, children }) => path.length > 0 && children.length === 0)
    .map((command) =>
      [
        `.SS ${bold(`colo-agent ${command.path.join(' ')}`)} ${roff(command.usage)}`,
        sentence(command.description),
        ...command.options.flatMap((option, index, all) => [
          ...groupHeading(option, all[index - 1]),
          ...optionParagraph(option),
        ]),
      ].join('\n'),
    )
    .join('\n');
}

/** For colo-agent.toml(5): what a table of a VM may have, which are the long options of the commands, each once. */
export function keyParagraphs(commands, names, without) {
  const seen = new Map();
  for (const command of commands.filter(({ path }) => names.includes(path.join(' ')))) {
    for (const option of command.options) {
      const key = option.names.at(-1).replace(/^--/, '');
      if (!without.includes(key) && !seen.has(key)) seen.set(key, option);
    }
  }
  return [...seen]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([key, option]) => ['.TP', bold(key) + keyValue(option), explained(option)].join('\n'))
    .join('\n');
}

function keyValue({ value, repeatable }) {
  if (value === null) return ` = ${italic('true or false')}`;
  return ` = ${repeatable ? '[' : ''}${italic(value)}${repeatable ? ', ...]' : ''}`;
}

function groupHeading({ group }, before) {
  return group === null || group === before?.group ? [] : ['.PP', roff(group)];
}

function optionParagraph(option) {
  const names = option.names.map(bold).join(', ');
  const value = option.value === null ? '' : ` ${italic(`<${option.value}>`)}`;
  return ['.TP', names + value, explained(option)];
}

function explained({ description, choices, default: preset, mandatory }) {
  const more = [
    ...(choices.length > 0 ? [`One of ${choices.join(', ')}.`] : []),
    ...(preset === null ? [] : [`Default: ${preset}.`]),
    ...(mandatory ? ['Must be given.'] : []),
  ];
  return [sentence(description), ...more.map(roff)].join('\n');
}

function sentence(text) {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return roff(/[.]$/.test(begun) ? begun : `${begun}.`);
}

/** Fills `@NAME@` in a page that is written by hand. An unknown name is an error of the page. */
export function filled(page, values) {
  return page.replaceAll(/@([A-Z_]+)@/g, (_, name) => {
    if (!(name in values)) throw new Error(`nothing is known for @${name}@`);
    return values[name];
  });
}
