/** Whether what npm run soak has measured is flat. */

/**
 * How much a measure may grow from the beginning of a run to its end, however long it is. Things that are taken and given back may not grow at all: of their numbers
 * the least in a part of the run counts, because a job in progress or a thread that is about to end comes and goes, and a leak stays. Of memory it is the
 * median; it may grow by what the garbage collector, the allocator's arenas and, in QEMU, the translated code of the guest swing by. In 1,000 cycles that is a
 * leak of 24 KiB in each.
 */
export const GROWTH_MAX = {
  fds: 0,
  /** Of QEMU, where they aren't among `fds`: it has five fewer in a pause, and part of a run may have no sample from one. */
  eventfds: 8,
  threads: 0,
  /** Workers of QEMU's pool come when there is work for several, and go when they have had none for ten seconds. */
  qemuThreads: 8,
  /** Arenas of the allocator and parts of V8's heap come and go. */
  mappings: 24,
  /** Those that a userfaultfd watches. */
  watched: 0,
  rssMiB: 24,
  pssMiB: 24,
  fdsets: 0,
  chardevs: 0,
  objects: 0,
  blockNodes: 0,
  jobs: 0,
  exports: 0,
};

const MEMORY = ['rssMiB', 'pssMiB'];
/** What a process needs until everything has been used once isn't growth: so much of a run, from its beginning, is left out. */
const WARM_UP_SHARE = 0.25;
/** Fewer samples than this show nothing. */
export const SAMPLES_MIN = 8;

/** `values`: of one measure over time. Returns what counts of the first and of the last third of them, without the warm-up. */
function trendOf(values, figureOf) {
  const settled = values.slice(Math.floor(values.length * WARM_UP_SHARE));
  const third = Math.max(1, Math.floor(settled.length / 3));
  const first = figureOf(settled.slice(0, third));
  const last = figureOf(settled.slice(-third));
  return { first, last, growth: last - first };
}

/**
 * `samples`: `{ who, when, figures }`, in order; figures are compared among those of the same process in the same situation. Returns a row for each measure
 * that there is, with `flat`. Throws for too few samples.
 */
export function judge(samples) {
  const groups = new Map();
  for (const { who, when, figures } of samples) {
    const series = `${who}, ${when}`;
    if (!groups.has(series)) groups.set(series, []);
    groups.get(series).push(figures);
  }
  return [...groups].flatMap(([series, members]) => {
    if (members.length < SAMPLES_MIN)
      throw new Error(
        `${series}: ${members.length} samples, ${SAMPLES_MIN} are needed; let it run for longer`,
      );
    return Object.keys(members[0]).map((measure) => {
      const values = members.map((figures) => figures[measure]);
      const trend = trendOf(values, MEMORY.includes(measure) ? median : least);
      return {
        series,
        measure,
        ...trend,
        max: GROWTH_MAX[measure],
        flat: trend.growth <= GROWTH_MAX[measure],
      };
    });
  });
}

function least(values) {
  return Math.min(...values);
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
