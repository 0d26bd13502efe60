/** Figures as people read them, never parted from their units at the end of a line. An absent one is a dash. */

export const NONE = '–';
const GAP = '\u00a0';

/** @param {number | null} ms */
export function duration(ms) {
  if (ms === null) return NONE;
  if (ms < 1000) return `${digits(ms)}${GAP}ms`;
  if (ms < 120_000) return `${digits(ms / 1000)}${GAP}s`;
  if (ms < 7_200_000) return `${digits(ms / 60_000)}${GAP}min`;
  return `${digits(ms / 3_600_000)}${GAP}h`;
}

const SIZES = ['B', 'kB', 'MB', 'GB', 'TB'];

/** @param {number | null} bytes */
export function size(bytes) {
  if (bytes === null) return NONE;
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < SIZES.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${digits(value)}${GAP}${SIZES[unit]}`;
}

/** @param {number | null} value */
export function count(value) {
  return value === null ? NONE : Math.round(value).toLocaleString('en');
}

/** @param {string} text @param {string} unit */
export function per(text, unit) {
  return text === NONE ? text : `${text}/${unit}`;
}

/** @param {number} timeMs */
export function clock(timeMs) {
  return new Date(timeMs).toLocaleTimeString('en-GB');
}

/** Of an event: the date only when it isn't today's. @param {string} iso @param {number} nowMs */
export function moment(iso, nowMs) {
  const time = new Date(iso);
  const day = time.toLocaleDateString('en-CA');
  return day === new Date(nowMs).toLocaleDateString('en-CA') ? clock(+time) : `${day} ${clock(+time)}`;
}

/** Three of them, and no more than one after the point. @param {number} value */
function digits(value) {
  return value >= 99.95 ? Math.round(value).toLocaleString('en') : String(Math.round(value * 10) / 10);
}
