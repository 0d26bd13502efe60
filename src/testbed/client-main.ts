/**
 * A relay between its standard input and output and one socket, to be run inside a test's network namespace: `client-main.js tcp HOST PORT` or
 * `client-main.js udp PORT`. What comes from the socket is printed at once, one JSON object a line, with the time on a clock that all processes share;
 * a line of input is sent. client.ts gives it a meaning.
 */
import { createSocket } from 'node:dgram';
import { connect } from 'node:net';
import { createInterface } from 'node:readline';
import type { RelayEvent, RelayRequest } from './relay.ts';
import { monotonicMs } from './wait.ts';

function print(type: RelayEvent['type'], text = ''): void {
  const event: RelayEvent = { type, atMs: monotonicMs(), text };
  process.stdout.write(`${JSON.stringify(event)}\n`);
}

function onRequest(handle: (request: RelayRequest) => void): void {
  createInterface({ input: process.stdin }).on('line', (line) => handle(JSON.parse(line) as RelayRequest));
}

function relayTcp(host: string, port: number): void {
  const socket = connect({ host, port, noDelay: true });
  socket.setEncoding('latin1');
  socket.on('connect', () => print('open'));
  socket.on('data', (text: string) => print('data', text));
  socket.on('error', (error) => print('error', error.message));
  socket.on('end', () => print('end'));
  onRequest((request) => socket.write(request.text, 'latin1'));
}

function relayUdp(port: number): void {
  const socket = createSocket('udp4');
  socket.on('listening', () => print('open'));
  socket.on('message', (message) => print('data', message.toString('latin1')));
  socket.on('error', (error) => print('error', error.message));
  socket.bind(port);
  onRequest((request) => socket.send(request.text, request.port, request.host));
}

const [kind, ...rest] = process.argv.slice(2);
if (kind === 'tcp' && rest.length === 2) relayTcp(rest[0] ?? '', Number(rest[1]));
else if (kind === 'udp' && rest.length === 1) relayUdp(Number(rest[0]));
else throw new Error('usage: client-main.js tcp HOST PORT | udp PORT');
