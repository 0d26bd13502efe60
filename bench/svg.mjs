/** Line charts as SVG text. Pure. */

const WIDTH = 900;
const HEIGHT = 420;
const MARGIN = { left: 76, right: 330, top: 44, bottom: 56 };
const COLOURS = [
  '#1b6ca8',
  '#c2452d',
  '#3f8f4f',
  '#8a5aa8',
  '#b8860b',
  '#555555',
  '#17a2a2',
  '#d4679d',
  '#8b4513',
];
const TICKS = 6;
/** Nothing that is measured is smaller; a logarithmic axis leaves it out, a linear one takes it for zero. */
const LEAST = 1e-9;

/**
 * `series`: [{name, points: [[x, y], ...]}]. A logarithmic axis (`xLog`, `yLog`) leaves out what isn't above zero. Throws when no point is left: an
 * empty chart would look like a result.
 */
export function lineChart({ title, xLabel, yLabel, series, xLog = false, yLog = false }) {
  const drawn = series
    .map(({ name, points }) => ({ name, points: points.filter((point) => canBeDrawn(point, xLog, yLog)) }))
    .filter(({ points }) => points.length > 0);
  if (drawn.length === 0) throw new Error(`nothing to draw in the chart "${title}"`);
  const all = drawn.flatMap(({ points }) => points);
  const x = makeAxis(
    all.map((point) => point[0]),
    xLog,
    MARGIN.left,
    WIDTH - MARGIN.right,
  );
  const y = makeAxis(
    all.map((point) => point[1]),
    yLog,
    HEIGHT - MARGIN.bottom,
    MARGIN.top,
  );
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${HEIGHT}" font-family="sans-serif" font-size="12">`,
    `<rect width="${WIDTH}" height="${HEIGHT}" fill="white"/>`,
    text(WIDTH / 2, 24, title, 'middle', 15),
    ...x.ticks.map((tick) => gridLine(x.place(tick), MARGIN.top, x.place(tick), HEIGHT - MARGIN.bottom)),
    ...y.ticks.map((tick) => gridLine(MARGIN.left, y.place(tick), WIDTH - MARGIN.right, y.place(tick))),
    ...x.ticks.map((tick) => text(x.place(tick), HEIGHT - MARGIN.bottom + 18, tickText(tick), 'middle')),
    ...y.ticks.map((tick) => text(MARGIN.left - 8, y.place(tick) + 4, tickText(tick), 'end')),
    text((MARGIN.left + WIDTH - MARGIN.right) / 2, HEIGHT - 14, xLabel, 'middle'),
    `<g transform="translate(18 ${HEIGHT / 2}) rotate(-90)">${text(0, 0, yLabel, 'middle')}</g>`,
    ...drawn.flatMap((one, i) => drawSeries(one, i, x, y)),
    '</svg>',
    '',
  ].join('\n');
}

function canBeDrawn([x, y], xLog, yLog) {
  return Number.isFinite(x) && Number.isFinite(y) && (!xLog || x >= LEAST) && (!yLog || y >= LEAST);
}

/** Where values lie between two places of the picture, and which are labelled. */
function makeAxis(values, isLog, from, to) {
  const scale = isLog ? Math.log10 : (value) => value;
  const ticks = isLog ? logTicks(values) : linearTicks(values);
  const [low, high] = [scale(ticks[0]), scale(ticks.at(-1))];
  return { ticks, place: (value) => round(from + ((scale(value) - low) / (high - low)) * (to - from)) };
}

/** Zero and all values lie within, in steps of 1, 2 or 5 times a power of ten. */
function linearTicks(values) {
  const low = Math.min(0, ...values);
  const high = Math.max(0, ...values);
  const rough = high - low < LEAST ? 1 : (high - low) / TICKS;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const ticks = [];
  for (let i = Math.floor(low / step); i <= Math.ceil(high / step); i++) ticks.push(i * step);
  return ticks.length > 1 ? ticks : [0, step];
}

/** Powers of ten; where these are few, with 2 and 5 times as much between them. */
function logTicks(values) {
  const low = Math.floor(Math.log10(Math.min(...values)));
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...values))));
  const factors = high - low > 2 ? [1] : [1, 2, 5];
  const ticks = [];
  for (let power = low; power < high; power++) ticks.push(...factors.map((factor) => factor * 10 ** power));
  return [...ticks, 10 ** high];
}

function drawSeries({ name, points }, index, x, y) {
  const colour = COLOURS[index % COLOURS.length];
  const places = points.map(([px, py]) => [x.place(px), y.place(py)]);
  const legendY = MARGIN.top + 12 + 20 * index;
  const legendX = WIDTH - MARGIN.right + 16;
  const dots =
    places.length > 40
      ? []
      : places.map(([cx, cy]) => `<circle cx="${cx}" cy="${cy}" r="3" fill="${colour}"/>`);
  return [
    `<polyline fill="none" stroke="${colour}" stroke-width="2" points="${places.map((place) => place.join(',')).join(' ')}"/>`,
    ...dots,
    `<line x1="${legendX}" y1="${legendY}" x2="${legendX + 18}" y2="${legendY}" stroke="${colour}" stroke-width="2"/>`,
    text(legendX + 24, legendY + 4, name, 'start'),
  ];
}

function gridLine(x1, y1, x2, y2) {
  return `<line x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}" stroke="#dddddd"/>`;
}

function text(x, y, content, anchor, size = 12) {
  return `<text x="${round(x)}" y="${round(y)}" text-anchor="${anchor}" font-size="${size}">${escaped(content)}</text>`;
}

function escaped(content) {
  return content.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
}

function tickText(value) {
  return String(Number(value.toPrecision(3)));
}

function round(value) {
  return Math.round(value * 10) / 10;
}
