/** What a process holds, as /proc tells it, and what QEMU has in it, as QMP tells it. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

const READINGS = 5;
const READING_INTERVAL_MS = 100;
const EVENTFD = 'anon_inode:[eventfd]';

export async function processFigures(pid) {
  const counted = await leastOf(() => ({
    fds: readdirSync(`/proc/${pid}/fd`).length,
    threads: threads(pid),
  }));
  return { ...counted, ...memoryFigures(pid) };
}

/** `monitor`: one that isn't the agent's. */
export async function qemuFigures(pid, monitor) {
  const count = async (command, args) => (await monitor.execute(command, args)).length;
  return {
    ...(await leastOf(() => ({ ...qemuFds(pid), qemuThreads: threads(pid) }))),
    ...memoryFigures(pid),
    fdsets: await count('query-fdsets'),
    chardevs: await count('query-chardev'),
    objects: await count('qom-list', { path: '/objects' }),
    blockNodes: await count('query-named-block-nodes', {}),
    jobs: await count('query-jobs'),
    exports: await count('query-block-exports'),
  };
}

/** Of some readings: a connection that asks for the status, or a thread that is about to end, is gone a moment later. */
async function leastOf(read) {
  const least = read();
  for (let reading = 1; reading < READINGS; reading++) {
    await sleep(READING_INTERVAL_MS);
    for (const [measure, value] of Object.entries(read())) least[measure] = Math.min(least[measure], value);
  }
  return least;
}

function threads(pid) {
  return readdirSync(`/proc/${pid}/task`).length;
}

function memoryFigures(pid) {
  const mappings = readFileSync(`/proc/${pid}/smaps`, 'utf8');
  return {
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

function kindsOfFds(pid) {
  const kinds = new Map();
  for (const fd of readdirSync(`/proc/${pid}/fd`)) {
    const kind = kindOf(`/proc/${pid}/fd/${fd}`);
    kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
  }
  return kinds;
}

/** QEMU's virtqueues have their eventfds only while the VM runs: it has fewer in a checkpoint's pause. */
function qemuFds(pid) {
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
