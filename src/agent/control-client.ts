import { createConnection } from 'node:net';
import { ControlError } from './control-server.ts';

const REPLY_TIMEOUT_MS = 30_000;
/** A take-over may have to wait for a fence, or for a disk: nobody but the agent knows how long. */
const NO_TIMEOUT = 0;

/**
 * Sends one command to an agent, or to the daemon, and returns its result. `replyMs`: how long it may take, unless nobody knows that. Throws ControlError: `no-agent` when nobody answers, else
 * the agent's own code.
 */
export async function sendCommand(
  socketPath: string,
  command: string,
  more: { vm?: string | null; force?: string | null; after?: number } = {},
  replyMs = REPLY_TIMEOUT_MS,
): Promise<unknown> {
  const timeoutMs = command === 'failover' || command === 'drill' ? NO_TIMEOUT : replyMs;
  const request = JSON.stringify({ command, ...more });
  const line = await exchange(socketPath, `${request}\n`, timeoutMs);
  let reply: { ok?: unknown; result?: unknown; error?: { code?: unknown; message?: unknown } };
  try {
    reply = JSON.parse(line);
  } catch {
    throw new ControlError(
      'malformed',
      `${socketPath} answered with something that is not JSON: is it a colo-agent's control socket?`,
    );
  }
  if (reply.ok === true) return reply.result;
  throw new ControlError(
    String(reply.error?.code ?? 'malformed'),
    String(reply.error?.message ?? `unexpected reply from ${socketPath}`),
  );
}

function exchange(socketPath: string, request: string, timeoutMs: number): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = createConnection(socketPath);
    let text = '';
    socket.setEncoding('utf8');
    socket.setTimeout(timeoutMs, () => {
      socket.destroy();
      reject(
        new ControlError(
          'no-agent',
          `the agent at ${socketPath} did not answer within ${timeoutMs / 1000} s`,
        ),
      );
    });
    socket.on('connect', () => socket.write(request));
    socket.on('data', (chunk: string) => {
      text += chunk;
      const end = text.indexOf('\n');
      if (end < 0) return;
      socket.destroy();
      resolve(text.slice(0, end));
    });
    socket.on('error', (error) =>
      reject(
        new ControlError(
          'no-agent',
          `no colo-agent answers at ${socketPath} (${error.message}); is it running, and is this its --control path?`,
        ),
      ),
    );
    socket.on('end', () =>
      reject(
        new ControlError('no-agent', `the agent at ${socketPath} closed the connection without an answer`),
      ),
    );
  });
}
