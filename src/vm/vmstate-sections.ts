/** Which devices a saved device state speaks of. */

export interface Section {
  name: string;
  instance: number;
  version: number;
}

// migration/savevm.h
const FILE_MAGIC = 0x5145564d; // "QEVM"
const FILE_VERSION = 3;
const SECTION_EOF = 0x00;
const SECTION_FULL = 0x04;
const SECTION_FOOTER = 0x7e;
const HEADER_BYTES = 8;
const FOOTER_BYTES = 5;

/**
 * The sections of what `xen-save-devices-state` wrote, in order. The stream doesn't say how long a section is: its end is found by its footer,
 * which repeats its number, with the next section's header or the end of the file behind it. Throws when `state` isn't such a stream.
 */
export function parseSections(state: Uint8Array): Section[] {
  const view = new DataView(state.buffer, state.byteOffset, state.byteLength);
  if (
    view.byteLength < HEADER_BYTES ||
    view.getUint32(0) !== FILE_MAGIC ||
    view.getUint32(4) !== FILE_VERSION
  ) {
    throw new Error('not a QEMU device state of version 3');
  }
  const sections: Section[] = [];
  for (let at = HEADER_BYTES; !isEnd(view, at); ) {
    const header = headerAt(view, at);
    if (!header) throw new Error(`no section begins at offset ${at} of the device state`);
    sections.push({ name: header.name, instance: header.instance, version: header.version });
    at = endOfSection(view, header);
  }
  return sections;
}

interface Header extends Section {
  id: number;
  dataOffset: number;
}

const NAME = /^[\x21-\x7e][\x20-\x7e]*$/;

/** type, be32 id, u8 length, name, be32 instance, be32 version (save_section_header). */
function headerAt(view: DataView, at: number): Header | null {
  if (at + 6 > view.byteLength || view.getUint8(at) !== SECTION_FULL) return null;
  const nameBytes = view.getUint8(at + 5);
  const behind = at + 6 + nameBytes;
  if (behind + 8 > view.byteLength) return null;
  const name = Buffer.from(view.buffer, view.byteOffset + at + 6, nameBytes).toString('latin1');
  if (!NAME.test(name)) return null;
  return {
    id: view.getUint32(at + 1),
    name,
    instance: view.getUint32(behind),
    version: view.getUint32(behind + 4),
    dataOffset: behind + 8,
  };
}

function endOfSection(view: DataView, { id, name, dataOffset }: Header): number {
  for (let at = dataOffset; at + FOOTER_BYTES <= view.byteLength; at += 1) {
    if (view.getUint8(at) !== SECTION_FOOTER || view.getUint32(at + 1) !== id) continue;
    const behind = at + FOOTER_BYTES;
    if (isEnd(view, behind) || headerAt(view, behind)) return behind;
  }
  throw new Error(`section ${name} of the device state has no end`);
}

function isEnd(view: DataView, at: number): boolean {
  return at === view.byteLength - 1 && view.getUint8(at) === SECTION_EOF;
}
