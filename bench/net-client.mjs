/**
 * A client of the guest, to be run inside its network: `net-client.mjs latency|paced|download|upload HOST PORT SECONDS`. Prints one line of JSON:
 * {latenciesMs}, of requests that were asked one after the other or (paced) one each 50 ms, or {bytes, seconds} of one connection.
 */
import { once } from 'node:events';
import { connect } from 'node:net';
import { performance } from 'node:perf_hooks';
import { setTimeout as setTimeoutAsync } from 'node:timers/promises';

const REQUEST_BYTES = 64;
const PACE_MS = 50;
/** A guest that says nothing for so long beyond the time of the measurement won't answer any more. */
const PATIENCE_MS = 15_000;
const CHUNK = Buffer.alloc(64 * 1024, 'x');

const [mode, host, port, seconds] = process.argv.slice(2);
setTimeout(() => fail(`no answer within ${PATIENCE_MS} ms`), Number(seconds) * 1000 + PATIENCE_MS);
const socket = connect({ host, port: Number(port), noDelay: true });
await once(socket, 'connect');
socket.on('end', () => socket.destroy(new Error('the guest closed the connection')));
const modes = { latency, paced, download, upload };
const result = await modes[mode](socket, Number(seconds) * 1000);
process.stdout.write(`${JSON.stringify(result)}\n`, () => process.exit(0));

function fail(reason) {
  process.stderr.write(`${mode} at ${host}:${port}: ${reason}\n`);
  process.exit(1);
}

function latency(connection, forMs) {
  return ask(connection, forMs, 0);
}

/** A guest that is asked now and then: the last checkpoint is long over when a request comes. */
function paced(connection, forMs) {
  return ask(connection, forMs, PACE_MS);
}

async function ask(connection, forMs, paceMs) {
  const latenciesMs = [];
  const untilMs = performance.now() + forMs;
  const question = Buffer.alloc(REQUEST_BYTES, 'r');
  while (performance.now() < untilMs) {
    const askedAtMs = performance.now();
    connection.write(question);
    for (let received = 0; received < REQUEST_BYTES; ) received += (await nextChunk(connection)).length;
    const tookMs = performance.now() - askedAtMs;
    latenciesMs.push(Math.round(tookMs * 1000) / 1000);
    // Each request falls elsewhere between two checkpoints.
    if (paceMs > 0) await setTimeoutAsync(Math.max(0, paceMs * (0.5 + Math.random()) - tookMs));
  }
  return { latenciesMs };
}

/** From the first byte on: the connection's beginning is another figure. */
async function download(connection, forMs) {
  await nextChunk(connection);
  const beganAtMs = performance.now();
  let bytes = 0;
  while (performance.now() < beganAtMs + forMs) bytes += (await nextChunk(connection)).length;
  return { bytes, seconds: (performance.now() - beganAtMs) / 1000 };
}

/** What the guest's side has acknowledged or holds: all that was written, but for what still waits here. */
async function upload(connection, forMs) {
  const beganAtMs = performance.now();
  while (performance.now() < beganAtMs + forMs) {
    if (!connection.write(CHUNK)) await once(connection, 'drain');
  }
  return {
    bytes: connection.bytesWritten - connection.writableLength,
    seconds: (performance.now() - beganAtMs) / 1000,
  };
}

async function nextChunk(connection) {
  for (;;) {
    const chunk = connection.read();
    if (chunk !== null) return chunk;
    await once(connection, 'readable');
  }
}
