/** This run beside an earlier one (`--compare FILE`). Pure. */

/** The figures of a run that are worth a comparison, by name; all of them are better when they are lower, except those in GB/s or a second. */
export function figuresOf(run) {
  const figures = new Map();
  const add = (name, value) => {
    if (Number.isFinite(value)) figures.set(name, value);
  };
  for (const [name, value] of Object.entries(run.summary ?? {})) {
    if (typeof value !== 'object' || value === null) add(`summary ${name}`, value);
    else for (const [part, inner] of Object.entries(value)) add(`summary ${name}.${part}`, inner);
  }
  for (const row of run.native ?? []) add(`native ${row.name}, us`, row.ns / 1e3);
  for (const row of run.checkpoints?.rows ?? []) {
    const name = `${row.load}, ${row.intervalMs} ms`;
    add(`pause p50 ms, ${name}`, row.pauseMs?.p50);
    add(`pause p99 ms, ${name}`, row.pauseMs?.p99);
    add(`wire/raw, ${name}`, row.wireVsRaw);
    add(`CPU of the agents, ${name}`, row.cpuShare && row.cpuShare.primary + row.cpuShare.secondary);
  }
  for (const row of run.client?.rows ?? []) {
    add(`request p50 ms, ${row.mode}`, row.requestMs?.p50);
    add(`request p99 ms, ${row.mode}`, row.requestMs?.p99);
    add(`download MB/s, ${row.mode}`, row.downloadMBps);
    add(`upload MB/s, ${row.mode}`, row.uploadMBps);
  }
  add('failover p50 ms', run.failover?.failoverMs?.p50);
  for (const row of run.growth?.rows ?? []) add(`growth pause p50 ms, ${row.name}`, row.pauseMs?.p50);
  for (const row of run.disks ?? []) add(`disk p50 us, ${row.mode}, depth ${row.depth}`, row.p50Us);
  return figures;
}

/** {what, before, now, ratio} of every figure that both runs have, in this run's order. `ratio` is null when the earlier one was zero. */
export function compareRuns(before, now) {
  const earlier = figuresOf(before);
  return [...figuresOf(now)]
    .filter(([what]) => earlier.has(what))
    .map(([what, value]) => {
      const old = earlier.get(what);
      return { what, before: old, now: value, ratio: old === 0 ? null : value / old };
    });
}
