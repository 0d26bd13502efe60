/** XML as libvirt writes it: elements, attributes, text. No DTD, no namespaces resolved (libvirt always writes `qemu:`), comments left out. */

export interface Element {
  name: string;
  attributes: Record<string, string>;
  children: Element[];
  /** What stands directly in it. */
  text: string;
}

const TOKEN =
  /<!--[\s\S]*?-->|<\?[\s\S]*?\?>|<(\/?)([A-Za-z_][\w:.-]*)((?:[^>"']|"[^"]*"|'[^']*')*?)(\/?)>|([^<]+)/g;
const ATTRIBUTE = /([A-Za-z_][\w:.-]*)\s*=\s*(?:"([^"]*)"|'([^']*)')/g;
const ENTITIES: Record<string, string> = { lt: '<', gt: '>', amp: '&', quot: '"', apos: "'" };

/** Throws Error where an element isn't closed, or something isn't XML. */
export function parseXml(text: string): Element {
  const root = element('', '');
  const open = [root];
  let end = 0;
  for (const token of text.matchAll(TOKEN)) {
    if (token.index !== end) throw malformed(text, end);
    end = token.index + token[0].length;
    const [, closing, name, attributes = '', empty, characters] = token;
    const parent = open.at(-1) as Element;
    if (characters !== undefined) parent.text += decoded(characters);
    else if (name === undefined) continue;
    else if (closing) {
      if (open.length === 1 || parent.name !== name) throw malformed(text, token.index);
      open.pop();
    } else {
      const child = element(name, attributes);
      parent.children.push(child);
      if (!empty) open.push(child);
    }
  }
  const [only] = root.children;
  if (end !== text.length || open.length !== 1 || root.children.length !== 1 || only === undefined)
    throw malformed(text, end);
  return only;
}

function element(name: string, attributes: string): Element {
  const entries = [...attributes.matchAll(ATTRIBUTE)].map(([, key = '', double, single]) => [
    key,
    decoded(double ?? single ?? ''),
  ]);
  return { name, attributes: Object.fromEntries(entries) as Record<string, string>, children: [], text: '' };
}

function malformed(text: string, offset: number): Error {
  return new Error(`this isn't XML as libvirt writes it, at '${text.slice(offset, offset + 40)}'`);
}

function decoded(text: string): string {
  return text.replaceAll(/&(?:#x([0-9a-f]+)|#(\d+)|(\w+));/gi, (whole, hex, decimal, name) => {
    if (name !== undefined) return ENTITIES[name as string] ?? whole;
    return String.fromCodePoint(hex === undefined ? Number(decimal) : Number.parseInt(hex as string, 16));
  });
}

export function encoded(text: string): string {
  return text
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll("'", '&apos;')
    .replaceAll('"', '&quot;');
}

export function childrenOf({ children }: Element, name: string): Element[] {
  return children.filter((child) => child.name === name);
}
