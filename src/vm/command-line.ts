/** QEMU's own command line, as far as QMP doesn't tell what stood in it. */

/** The values of every `-option VALUE` or `--option VALUE`. */
export function optionValues(commandLine: readonly string[], option: string): string[] {
  return commandLine.flatMap((word, index) => {
    const value = commandLine[index + 1];
    return (word === `-${option}` || word === `--${option}`) && value !== undefined ? [value] : [];
  });
}

export function hasOption(commandLine: readonly string[], option: string): boolean {
  return commandLine.some((word) => word === `-${option}` || word === `--${option}`);
}

/** As -name has it; null: it has none. */
export function guestName(commandLine: readonly string[]): string | null {
  const [value] = optionValues(commandLine, 'name').slice(-1);
  return value === undefined ? null : (parseKeyValues(value, 'guest').get('guest') ?? null);
}

/**
 * An option's value as keys and values: JSON, which libvirt writes, or QEMU's `type,key=value,...` in which `,,` is a comma. The word in front
 * that has no key gets `firstKey`; any other word without `=` is a switch that is on.
 */
export function parseKeyValues(value: string, firstKey: string): Map<string, string> {
  if (value.startsWith('{')) {
    const members = Object.entries(JSON.parse(value) as Record<string, unknown>);
    return new Map(
      members.map(([key, member]) => [
        key,
        typeof member === 'boolean' ? (member ? 'on' : 'off') : String(member),
      ]),
    );
  }
  const words = value.match(/(?:[^,]|,,)+/g) ?? [];
  return new Map(
    words.map((word, index): [string, string] => {
      const text = word.replaceAll(',,', ',');
      const equals = text.indexOf('=');
      if (equals >= 0) return [text.slice(0, equals), text.slice(equals + 1)];
      return index === 0 ? [firstKey, text] : [text, 'on'];
    }),
  );
}
