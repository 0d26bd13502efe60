/**
 * A client of the guest, to be run inside its network: `net-client.mjs latency|download|upload HOST PORT SECONDS`. Prints one line of JSON:
 * {latenciesMs}, of requests that were asked one after the other, or {bytes, seconds} of one connection.
 */
import { once } from 'node:events';
import { connect } from 'node:net';
import { performance } from 'node:perf_hooks';

const REQUEST_BYTES = 64;
/** A guest that says nothing for so long beyond the time of the measurement won't answer any more. */
const PATIENCE_MS = 15_000;
const CHUNK = Buffer.alloc(64 * 1024, 'x');

const [mode, host, port, seconds] = process.argv.slice(2);
setTimeout(() => fail(`no answer within ${PATIENCE_MS} ms`), Number(seconds) * 1000 + PATIENCE_MS);
const socket = connect({ host, port: Number(port), noDelay: true });
await once(socket, 'connect');
socket.on('end', () => socket.destroy(new Error('the guest closed the connection')));
const modes = { latency, download, upload };
const result = await modes[mode](socket, Number(seconds) * 1000);
process.stdout.write(`${JSON.stringify(result)}\n`, () => process.exit(0));

function fail(reason) {
  process.stderr.write(`${mode} at ${host}:${port}: ${reason}\n`);
  process.exit(1);
}

async function latency(connection, forMs) {
  const latenciesMs = [];
  const untilMs = performance.now() + forMs;
  const question = Buffer.alloc(REQUEST_BYTES, 'r');
  while (performance.now() < untilMs) {
    const askedAtMs = performance.now();
    connection.write(question);
    for (let received = 0; received < REQUEST_BYTES; ) received += (await nextChunk(connection)).length;
    latenciesMs.push(Math.round((performance.now() - askedAtMs) * 1000) / 1000);
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
