/** The stream of a QMP socket, cut into lines. */

/** Longer than any reply QEMU gives (query-qmp-schema, the longest, is below 1 MiB). */
export const LINE_BYTES_MAX = 64 * 1024 * 1024;

const LF = 0x0a;

/** Buffers at most one unfinished line, of at most `lineBytesMax` bytes. QEMU ends lines in CR LF; the
 * CR stays, JSON takes it as white space. */
export class LineSplitter {
  readonly #lineBytesMax: number;
  readonly #decoder = new TextDecoder('utf-8', { fatal: true });
  #parts: Uint8Array[] = [];
  #bytes = 0;

  constructor(lineBytesMax = LINE_BYTES_MAX) {
    this.#lineBytesMax = lineBytesMax;
  }

  /** Yields the lines that `chunk` completes. Throws RangeError for a line that is too long, TypeError for one that isn't UTF-8. */
  *push(chunk: Uint8Array): Generator<string> {
    let from = 0;
    for (let end = chunk.indexOf(LF); end >= 0; end = chunk.indexOf(LF, from)) {
      this.#keep(chunk.subarray(from, end));
      from = end + 1;
      const line = this.#decoder.decode(Buffer.concat(this.#parts, this.#bytes));
      this.#parts = [];
      this.#bytes = 0;
      yield line;
    }
    if (from < chunk.length) this.#keep(chunk.subarray(from));
  }

  #keep(part: Uint8Array): void {
    this.#bytes += part.length;
    if (this.#bytes > this.#lineBytesMax)
      throw new RangeError(`a line is longer than ${this.#lineBytesMax} bytes`);
    this.#parts.push(part);
  }
}
