/** Commander's tree as what man pages and completions need of it. */

/** A placeholder in an option's flags that means a path; the shells complete those. */
const PATHS = { socket: 'file', file: 'file', device: 'file', program: 'file', folder: 'folder' };

/**
 * All commands below `program`, itself first: `path` are the words that lead to it, `options` its own and --help, `children` the names of its
 * commands with what they do.
 */
export function commandsOf(program) {
  const found = [];
  const visit = (command, path) => {
    const children = command.createHelp().visibleCommands(command);
    found.push({
      path,
      description: command.description(),
      usage: command.usage(),
      arguments: command.registeredArguments.map((argument) => argument.name()),
      options: command.createHelp().visibleOptions(command).map(optionOf),
      children: children.map((child) => ({ name: child.name(), description: child.description() })),
    });
    for (const child of children) if (child.name() !== 'help') visit(child, [...path, child.name()]);
  };
  visit(program, []);
  return found;
}

function optionOf(option) {
  const placeholder = /<([^>]+)>|\[([^\]]+)\]/.exec(option.flags);
  const value = placeholder ? (placeholder[1] ?? placeholder[2]) : null;
  return {
    flags: option.flags,
    names: [option.short, option.long].filter(Boolean),
    /** What the value is called; null: it takes none. */
    value,
    choices: option.argChoices ?? [],
    completes: option.argChoices ? 'choices' : (PATHS[value] ?? 'nothing'),
    mandatory: option.mandatory === true,
    repeatable: Array.isArray(option.defaultValue),
    default: shownDefault(option.defaultValue),
    group: option.helpGroupHeading ?? null,
    description: option.description,
  };
}

function shownDefault(value) {
  return ['string', 'number'].includes(typeof value) && value !== '' ? String(value) : null;
}
