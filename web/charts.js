/** The charts of one virtual machine. */
import uPlot from '/plot/uPlot.esm.js';
import { clock, count, duration, per, size } from './format.js';

/** @typedef {import('../src/web/history.ts').Row} HistoryRow */
/** @typedef {{ label: string, column: number }} Series */
/** @typedef {{ title: string, format: (value: number | null) => string, series: Series[] }} Spec */

const WINDOW_S = 900;

/** Columns are those of src/web/history.ts. @type {Record<'primary' | 'secondary', Spec[]>} */
const SPECS = {
  primary: [
    {
      title: 'Pause of the guest',
      format: duration,
      series: [
        { label: 'mean', column: 1 },
        { label: 'p99 of the last 1,024', column: 2 },
      ],
    },
    {
      title: 'Checkpoint, from the pause to its receipt',
      format: duration,
      series: [
        { label: 'mean', column: 3 },
        { label: 'p99 of the last 1,024', column: 4 },
      ],
    },
    {
      title: 'Dirty pages',
      format: (value) => per(count(value), 's'),
      series: [{ label: 'sent', column: 7 }],
    },
    {
      title: 'Bandwidth',
      format: (value) => per(size(value), 's'),
      series: [{ label: 'to the standby', column: 8 }],
    },
  ],
  secondary: [
    {
      title: 'Bringing a checkpoint in',
      format: duration,
      series: [
        { label: 'into RAM and disks, mean', column: 5 },
        { label: 'into the devices, mean', column: 6 },
      ],
    },
    {
      title: 'Bandwidth',
      format: (value) => per(size(value), 's'),
      series: [{ label: 'from the primary', column: 8 }],
    },
  ],
};

export class Charts {
  #element;
  /** @type {Chart[]} */
  #charts = [];
  #role = '';
  /** @type {readonly HistoryRow[]} */
  #rows = [];
  #nowMs = 0;

  /** @param {HTMLElement} element */
  constructor(element) {
    this.#element = element;
    // Colours are read when a chart is made.
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.#build());
  }

  /** @param {'primary' | 'secondary' | null} role @param {readonly HistoryRow[]} rows @param {number} nowMs */
  show(role, rows, nowMs) {
    this.#rows = rows;
    this.#nowMs = nowMs;
    if (this.#role !== (role ?? 'primary')) {
      this.#role = role ?? 'primary';
      this.#build();
      return;
    }
    for (const chart of this.#charts) chart.show(rows, nowMs);
  }

  #build() {
    for (const chart of this.#charts) chart.destroy();
    this.#charts = SPECS[this.#role === 'secondary' ? 'secondary' : 'primary'].map((spec) => new Chart(spec));
    this.#element.replaceChildren(...this.#charts.map(({ element }) => element));
    for (const chart of this.#charts) {
      chart.begin();
      chart.show(this.#rows, this.#nowMs);
    }
  }
}

class Chart {
  element = document.createElement('figure');
  #caption = document.createElement('figcaption');
  #canvas = document.createElement('div');
  #spec;
  /** @type {HTMLElement[]} */
  #values = [];
  /** @type {uPlot | null} */
  #plot = null;
  #resize = new ResizeObserver(() => this.#fit());

  /** @param {Spec} spec */
  constructor(spec) {
    this.#spec = spec;
    const title = document.createElement('h3');
    title.textContent = spec.title;
    this.#caption.append(title, ...spec.series.map((series, index) => this.#legend(series, index)));
    this.#canvas.className = 'canvas';
    this.#canvas.ariaHidden = 'true'; // the caption has the figures
    this.element.append(this.#caption, this.#canvas);
  }

  /** When it is in the page: its size is that of its place. */
  begin() {
    this.#plot = new uPlot(this.#options(), [[], ...this.#spec.series.map(() => [])], this.#canvas);
    this.#resize.observe(this.#canvas);
  }

  destroy() {
    this.#resize.disconnect();
    this.#plot?.destroy();
  }

  /** @param {readonly HistoryRow[]} rows @param {number} nowMs */
  show(rows, nowMs) {
    const times = rows.map(([timeMs]) => Number(timeMs) / 1000);
    const data = this.#spec.series.map(({ column }) => rows.map((row) => row[column] ?? null));
    this.#plot?.setData([times, ...data], false);
    this.#plot?.setScale('x', { min: nowMs / 1000 - WINDOW_S, max: nowMs / 1000 });
    this.#tell();
  }

  /** @param {Series} series @param {number} index */
  #legend({ label }, index) {
    const item = document.createElement('p');
    const mark = document.createElement('span');
    mark.className = `mark series-${index + 1}`;
    const value = document.createElement('span');
    value.className = 'value';
    this.#values.push(value);
    item.append(mark, `${label}: `, value);
    return item;
  }

  /** What is under the pointer, or else the latest, and the highest. */
  #tell() {
    const plot = this.#plot;
    if (plot === null) return;
    const pointed = plot.cursor.idx ?? null;
    for (const [index, node] of this.#values.entries()) {
      const values = /** @type {(number | null)[]} */ (plot.data[index + 1] ?? []);
      const known = values.filter((value) => value !== null);
      const { format } = this.#spec;
      const shown =
        pointed === null
          ? `${format(values.at(-1) ?? null)}, at most ${format(known.length > 0 ? Math.max(...known) : null)}`
          : `${format(values[pointed] ?? null)} at ${clock(Number(plot.data[0][pointed]) * 1000)}`;
      if (node.textContent !== shown) node.textContent = shown;
    }
  }

  #fit() {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    if (width > 0 && height > 0) this.#plot?.setSize({ width, height });
  }

  /** A variable of the style sheet as a canvas takes it: without light-dark(). @param {string} name */
  #colour(name) {
    this.element.style.color = `var(${name})`;
    const { color } = getComputedStyle(this.element);
    this.element.style.color = '';
    return color;
  }

  /** @returns {import('uplot').Options} */
  #options() {
    const em = Number.parseFloat(getComputedStyle(document.documentElement).fontSize);
    const font = `${0.75 * em}px system-ui, sans-serif`;
    const axis = {
      stroke: this.#colour('--quiet'),
      font,
      grid: { stroke: this.#colour('--line'), width: 1 },
      ticks: { show: false },
    };
    const { format } = this.#spec;
    return {
      width: Math.max(this.#canvas.clientWidth, 50),
      height: Math.max(this.#canvas.clientHeight, 50),
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false } },
      padding: [0.5 * em, 1.5 * em, 0, 0],
      scales: { x: { time: true }, y: { range: (_plot, _min, max) => [0, max > 0 ? max * 1.1 : 1] } },
      axes: [
        {
          ...axis,
          space: 5 * em,
          size: 1.6 * em,
          values: (_plot, at) => at.map((s) => clock(s * 1000).slice(0, 5)),
        },
        { ...axis, space: 2.5 * em, size: 5 * em, values: (_plot, at) => at.map((value) => format(value)) },
      ],
      series: [
        {},
        ...this.#spec.series.map(({ label }, index) => ({
          label,
          stroke: this.#colour(`--series-${index + 1}`),
          width: 1.5,
          points: { show: false },
        })),
      ],
      hooks: { setCursor: [() => this.#tell()] },
    };
  }
}
