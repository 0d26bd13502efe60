/** What a process holds, as /proc tells it, and what QEMU has in it, as QMP tells it. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';

const EVENTFD = 'anon_inode:[eventfd]';

export function processFigures(pid) {
  const mappings = readFileSync(`/proc/${pid}/smaps`, 'utf8');
  return {
    fds: readdirSync(`/proc/${pid}/fd`).length,
    threads: readdirSync(`/proc/${pid}/task`).length,
    mappings: mappings.match(/^VmFlags:/gm).length,
    // um, uw, ui: for pages that are missing, write-protected, or not mapped yet.
    watched: (mappings.match(/^VmFlags:.* u[mwi]\b/gm) ?? []).length,
    rssMiB: sumMiB(mappings, 'Rss'),
    pssMiB: sumMiB(mappings, 'Pss'),
  };
}

function sumMiB(mappings, field) {
  let kib = 0;
  for (const [, value] of mappings.matchAll(new RegExp(`^${field}: +(\\d+) kB$`, 'gm'))) kib += Number(value);
  return Math.round(kib / 102.4) / 10;
}

/** `monitor`: one that isn't the agent's. */
export async function qemuFigures(pid, monitor) {
  const count = async (command, args) => (await monitor.execute(command, args)).length;
  return {
    ...processFigures(pid),
    ...fdFigures(pid),
    fdsets: await count('query-fdsets'),
    chardevs: await count('query-chardev'),
    objects: await count('qom-list', { path: '/objects' }),
    blockNodes: await count('query-named-block-nodes', {}),
    jobs: await count('query-jobs'),
    exports: await count('query-block-exports'),
  };
}

function kindsOfFds(pid) {
  const kinds = new Map();
  for (const fd of readdirSync(`/proc/${pid}/fd`)) {
    const kind = kindOf(`/proc/${pid}/fd/${fd}`);
    kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
  }
  return kinds;
}

/** QEMU's virtqueues have their eventfds only while the VM runs: it has fewer in a checkpoint's pause. */
function fdFigures(pid) {
  const { [EVENTFD]: eventfds = 0, ...others } = Object.fromEntries(kindsOfFds(pid));
  return { fds: Object.values(others).reduce((sum, count) => sum + count, 0), eventfds };
}

/** How many descriptors of each kind: "socket 12, anon_inode:[eventfd] 3". */
export function fdKinds(pid) {
  return [...kindsOfFds(pid)]
    .sort(([, a], [, b]) => b - a)
    .map(([kind, count]) => `${kind} ${count}`)
    .join(', ');
}

function kindOf(link) {
  try {
    return readlinkSync(link).replace(/:\[\d+\]$/, '');
  } catch {
    return 'closed meanwhile';
  }
}
