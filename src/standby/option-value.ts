/**
 * The value of one of QEMU's options, to be changed and written again: `type,key=value,...` in which `,,` is a comma, or JSON, which libvirt writes. What
 * isn't touched keeps its place and its form. Nested members have dotted keys (`cache.direct`), as in QEMU's own syntax; an array is one value.
 */
type Leaf = string | number | boolean | null | readonly unknown[];

interface Member {
  key: string;
  value: Leaf;
  /** Written without `=`, as `nowait`, and so again. */
  bare: boolean;
}

export class OptionValue {
  readonly #json: boolean;
  /** The value in front has no key in the text: `tap` in `tap,id=n0`. */
  readonly #firstKey: string;
  /** A key may come several times: `hostfwd=...,hostfwd=...`. QEMU takes the last one where it wants only one. */
  #members: Member[] = [];

  /** Throws Error when JSON doesn't parse. */
  constructor(text: string, firstKey: string) {
    this.#json = text.startsWith('{');
    this.#firstKey = firstKey;
    if (this.#json) this.#flatten(JSON.parse(text) as Record<string, unknown>, '');
    else this.#parse(text);
  }

  static fromObject(members: Record<string, unknown>): OptionValue {
    return new OptionValue(JSON.stringify(members), '');
  }

  /** Null when it isn't there; a switch is `on` or `off`. */
  get(key: string): string | null {
    const value = this.#members.findLast((member) => member.key === key)?.value;
    if (value === undefined || value === null) return null;
    if (typeof value === 'boolean') return value ? 'on' : 'off';
    return typeof value === 'object' ? JSON.stringify(value) : String(value);
  }

  set(key: string, value: string | number): void {
    const member = this.#members.findLast((candidate) => candidate.key === key);
    // JSON keeps the type: QEMU takes no "off" for false there.
    const typed = this.#json && typeof member?.value === 'boolean' ? value === 'on' : value;
    if (member) Object.assign(member, { value: typed, bare: false });
    else this.#members.push({ key, value, bare: false });
  }

  delete(...keys: string[]): void {
    this.#members = this.#members.filter(({ key }) => !keys.includes(key));
  }

  /** Members of JSON with their types. */
  entries(): [string, Leaf][] {
    return this.#members.map(({ key, value }) => [key, value]);
  }

  keys(): string[] {
    return this.#members.map(({ key }) => key);
  }

  toString(): string {
    if (this.#json) return JSON.stringify(this.#nested());
    return this.#members
      .map(({ key, value, bare }, index) => {
        const text = String(value).replaceAll(',', ',,');
        if (bare) return key;
        return index === 0 && key === this.#firstKey ? text : `${key}=${text}`;
      })
      .join(',');
  }

  #parse(text: string): void {
    const words = text.match(/(?:[^,]|,,)+/g) ?? [];
    for (const [index, word] of words.entries()) {
      const plain = word.replaceAll(',,', ',');
      const equals = plain.indexOf('=');
      if (equals >= 0)
        this.#members.push({ key: plain.slice(0, equals), value: plain.slice(equals + 1), bare: false });
      else if (index === 0 && this.#firstKey !== '')
        this.#members.push({ key: this.#firstKey, value: plain, bare: false });
      else this.#members.push({ key: plain, value: 'on', bare: true });
    }
  }

  #flatten(value: Record<string, unknown>, prefix: string): void {
    for (const [key, member] of Object.entries(value)) {
      if (typeof member === 'object' && member !== null && !Array.isArray(member))
        this.#flatten(member as Record<string, unknown>, `${prefix}${key}.`);
      else this.#members.push({ key: prefix + key, value: member as Leaf, bare: false });
    }
  }

  #nested(): Record<string, unknown> {
    const root: Record<string, unknown> = {};
    for (const { key, value } of this.#members) {
      const path = key.split('.');
      const last = path.pop() as string;
      let place = root;
      for (const step of path) {
        place[step] ??= {};
        place = place[step] as Record<string, unknown>;
      }
      place[last] = value;
    }
    return root;
  }
}
