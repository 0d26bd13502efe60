/** Tables for a terminal. Pure. */

/**
 * Text goes to the left, figures to the right. What isn't there is a dash.
 * @param {string} title
 * @param {[string, (row: any) => any][]} columns each with its head and its value of a row
 * @param {any[]} rows
 */
export function tableLines(title, columns, rows) {
  const cells = rows.map((row) => columns.map(([, value]) => cellText(value(row))));
  const widths = columns.map(([head], i) =>
    Math.max(head.length, ...cells.map((line) => line[i].text.length)),
  );
  const line = (texts, isText) =>
    texts
      .map((text, i) => (isText(i) ? text.padEnd(widths[i]) : text.padStart(widths[i])))
      .join('  ')
      .trimEnd();
  const textColumns = columns.map((_, i) => cells.every((row) => row[i].isText));
  const head = line(
    columns.map(([name]) => name),
    (i) => textColumns[i],
  );
  const body = cells.map((row) =>
    line(
      row.map(({ text }) => text),
      (i) => row[i].isText,
    ),
  );
  return ['', title, head, ...body];
}

function cellText(value) {
  if (value === null || value === undefined) return { text: '-', isText: false };
  if (typeof value === 'string') return { text: value, isText: true };
  return { text: numberText(value), isText: false };
}

/** Three digits that matter, and no more than a reader can use. */
export function numberText(value) {
  if (!Number.isFinite(value)) return '-';
  const size = Math.abs(value);
  if (Number.isInteger(value) || size >= 1000) return String(Math.round(value));
  return value.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : 3);
}
