/** What bash, zsh and fish complete after `colo-agent`. */

const HEAD = '# Completion for colo-agent, written from its options by scripts/reference.mjs.';
const words = (list) => list.join(' ');
/** In single quotes, in bash and zsh. */
const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
/** fish has other escapes within them. */
const fishQuoted = (text) => `'${text.replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'`;

export function bashCompletion(commands) {
  const known = commands.filter(({ path }) => path.length > 0).map(({ path }) => at(path));
  return `${HEAD}
_colo_agent() {
  local cur=\${COMP_WORDS[COMP_CWORD]} prev=\${COMP_WORDS[COMP_CWORD-1]} at='' word words='' i
  COMPREPLY=()
  # bash divides --name=value into three words.
  if [[ $cur == = ]]; then
    cur=''
  elif [[ $prev == = && COMP_CWORD -gt 1 ]]; then
    prev=\${COMP_WORDS[COMP_CWORD-2]}
  fi
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=\${COMP_WORDS[i]}
    case "$at/$word" in
      ${known.join(' | ')}) at=$at/$word ;;
    esac
  done
  case "$at $prev" in
${bashValues(commands)}
  esac
  case "$at" in
${commands.map(({ path, options, children }) => `    '${at(path)}') words='${words([...children.map(({ name }) => name), ...options.flatMap(({ names }) => names)])}' ;;`).join('\n')}
  esac
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}
complete -F _colo_agent colo-agent
`;
}

const at = (path) => path.map((name) => `/${name}`).join('');

function bashValues(commands) {
  return commands
    .flatMap(({ path, options }) =>
      options
        .filter(({ value }) => value !== null)
        .map((option) => {
          const pattern = option.names.map((name) => `'${at(path)} ${name}'`).join(' | ');
          return `    ${pattern}) ${bashValue(option)}return ;;`;
        }),
    )
    .join('\n');
}

function bashValue({ completes, choices }) {
  const from = (what) => `mapfile -t COMPREPLY < <(compgen ${what} -- "$cur"); `;
  if (completes === 'choices') return from(`-W '${words(choices)}'`);
  if (completes === 'nothing') return '';
  return `compopt -o filenames 2>/dev/null; ${from(completes === 'folder' ? '-d' : '-f')}`;
}

export function zshCompletion(commands) {
  const functions = commands.map((command) =>
    command.children.length > 0 ? zshGroup(command) : zshCommand(command),
  );
  return `#compdef colo-agent\n${HEAD}\n\n${functions.join('\n\n')}\n\n_colo-agent "$@"\n`;
}

const zshName = (path) => ['_colo-agent', ...path].join('-');

function zshGroup({ path, options, children }) {
  const described = children.map(
    ({ name, description }) => `    ${quoted(`${name}:${description.replaceAll(':', '\\:')}`)}`,
  );
  return `${zshName(path)}() {
  local state line
  local -a commands=(
${described.join('\n')}
  )
  _arguments -C \\
${options.map((option) => `    ${zshOption(option)} \\`).join('\n')}
    '1:command:->command' '*::argument:->argument'
  case $state in
    command) _describe command commands ;;
    argument)
      (( $+functions[${zshName(path)}-$line[1]] )) && ${zshName(path)}-$line[1]
      ;;
  esac
}`;
}

function zshCommand({ path, options, arguments: positional }) {
  const specs = [
    ...options.map(zshOption),
    ...positional.map((name, index) => quoted(`${index + 1}:${name}:`)),
  ];
  return `${zshName(path)}() {\n  _arguments \\\n    ${specs.join(' \\\n    ')}\n}`;
}

function zshOption(option) {
  const { names, value, description, repeatable } = option;
  const text = description.replaceAll(/[[\]]/g, '\\$&').replaceAll(':', '\\:');
  const rest = `[${text}]${value === null ? '' : `:${value.replaceAll(':', '\\:')}:${zshValue(option)}`}`;
  const head = repeatable ? '*' : `(${words(names)})`;
  return names.map((name) => quoted(`${head}${name}${rest}`)).join(' ');
}

function zshValue({ completes, choices }) {
  if (completes === 'choices') return `(${words(choices)})`;
  if (completes === 'folder') return '_files -/';
  return completes === 'file' ? '_files' : '';
}

export function fishCompletion(commands) {
  const lines = commands.flatMap((command) => {
    const here = `-n ${fishQuoted(`__colo_agent_at${command.path.map((name) => ` ${name}`).join('')}`)}`;
    return [
      ...command.children.map(
        ({ name, description }) =>
          `complete -c colo-agent -f ${here} -a ${name} -d ${fishQuoted(description)}`,
      ),
      ...command.options.map((option) => `complete -c colo-agent ${here} ${fishOption(option)}`),
    ];
  });
  const paths = commands.filter(({ path }) => path.length > 0).map(({ path }) => `'${path.join(' ')}'`);
  return `${HEAD}
function __colo_agent_at --description 'whether the command line stands at this command'
    set -l known ${words(paths)}
    set -l found
    for word in (commandline -opc)[2..-1]
        if contains -- "$found $word" ' '$known
            set found "$found $word"
        end
    end
    set -l wanted ''
    if set -q argv[1]
        set wanted " $argv"
    end
    test "$found" = "$wanted"
end

complete -c colo-agent -f
${lines.join('\n')}
`;
}

function fishOption({ names, value, completes, choices, description }) {
  const flags = names.map((name) => (name.startsWith('--') ? `-l ${name.slice(2)}` : `-s ${name.slice(1)}`));
  const values = {
    choices: ` -x -a ${fishQuoted(words(choices))}`,
    file: ' -r -F',
    folder: " -x -a '(__fish_complete_directories)'",
    nothing: ' -x',
  };
  return `${words(flags)}${value === null ? '' : values[completes]} -d ${fishQuoted(description)}`;
}
