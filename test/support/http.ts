/** HTTP as a monitor, a browser and a stranger speak it. */
import { type IncomingHttpHeaders, request } from 'node:http';
import { connect, type Socket } from 'node:net';
import type { HttpAddress } from '../../src/http/address.ts';

export type Where = { socketPath: string } | { host: string; port: number };

export interface Answer {
  code: number;
  headers: IncomingHttpHeaders;
  body: string;
}

export function whereOf({ address }: { address: HttpAddress }): Where {
  return 'path' in address ? { socketPath: address.path } : address;
}

export function ask(
  where: Where,
  path: string,
  headers: Record<string, string> = {},
  method = 'GET',
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const asked = request({ ...where, path, method, headers }, (response) => {
      let body = '';
      response.setEncoding('utf8');
      response.on('data', (text) => {
        body += text;
      });
      response.on('end', () => resolve({ code: response.statusCode ?? 0, headers: response.headers, body }));
    });
    asked.on('error', reject);
    asked.end();
  });
}

/** A connection that says what it is told to and nothing more; `closed`: with all that it heard. */
export function dial(where: Where, text: string): { socket: Socket; closed: Promise<string> } {
  const socket = connect('socketPath' in where ? { path: where.socketPath } : where);
  let received = '';
  socket.on('data', (chunk) => {
    received += chunk;
  });
  socket.on('error', () => {});
  socket.write(text);
  return { socket, closed: new Promise((resolve) => socket.once('close', () => resolve(received))) };
}
