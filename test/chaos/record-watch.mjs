/**
 * Prints every value that a key of etcd ever has, as a JSON line, in order: `record-watch.mjs KEY URL...`, on etcd's own host. What changed between two looks is read
 * back from etcd's history, so none is missed.
 */
import { setTimeout as sleep } from 'node:timers/promises';

const LOOK_MS = 100;
const TIMEOUT_MS = 2000;

const [key, ...urls] = process.argv.slice(2);
let first = 0;
let knownVersion = 0;
let knownRevision = 0;

for (;;) {
  // Nobody answers while etcd has no majority: what changes meanwhile is nothing.
  await look().catch(() => first++);
  await sleep(LOOK_MS);
}

async function look() {
  const entries = [];
  for (let entry = await read(0); entry !== null; entry = await read(entry.revision - 1)) {
    if (entry.revision <= knownRevision) break;
    entries.unshift(entry);
    if (entry.version === 1 || entry.version === knownVersion + 1) break;
  }
  for (const entry of entries) {
    knownVersion = entry.version;
    knownRevision = entry.revision;
    process.stdout.write(`${JSON.stringify(entry.record)}\n`);
  }
}

/** As it was at `revision`; 0: as it is, linearisably. */
async function read(revision) {
  const body = JSON.stringify({ key: btoa(key), ...(revision > 0 && { revision: String(revision) }) });
  const reply = await fetch(new URL('/v3/kv/range', urls[first % urls.length]), {
    method: 'POST',
    body,
    signal: AbortSignal.timeout(TIMEOUT_MS),
  });
  const { kvs = [], error } = await reply.json();
  if (error !== undefined) throw new Error(error);
  const [found] = kvs;
  if (found === undefined) return null;
  const { mod_revision, version, value } = found;
  return { revision: Number(mod_revision), version: Number(version), record: JSON.parse(atob(value)) };
}
