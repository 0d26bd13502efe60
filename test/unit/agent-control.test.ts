import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createConnection } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { sendCommand } from '../../src/agent/control-client.ts';
import { ControlError, ControlServer } from '../../src/agent/control-server.ts';
import type { Status } from '../../src/agent/status.ts';

let folder: string;
let socketPath: string;
let server: ControlServer | null = null;

const handler = {
  status: () => ({ vm: 'test', state: 'PROTECTED' }) as Status,
  failover: async (): Promise<string> => {
    throw new ControlError('refused', 'the primary lives');
  },
  stop: async () => 'stopping',
};

beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'colo-control-'));
  socketPath = path.join(folder, 'sub', 'control.sock');
});

afterEach(() => {
  server?.close();
  server = null;
  rmSync(folder, { recursive: true });
});

describe('the control socket', () => {
  test('answers, carries errors with their code, and is not for everybody', async () => {
    server = await ControlServer.listen(socketPath, handler);
    expect(await sendCommand(socketPath, 'status')).toEqual({ vm: 'test', state: 'PROTECTED' });
    expect(await sendCommand(socketPath, 'stop')).toBe('stopping');
    await expect(sendCommand(socketPath, 'failover')).rejects.toMatchObject({
      code: 'refused',
      message: 'the primary lives',
    });
    expect(statSync(socketPath).mode & 0o777).toBe(0o660);
  });

  test('a second agent at the same path is refused; a dead agent’s socket is not', async () => {
    server = await ControlServer.listen(socketPath, handler);
    await expect(ControlServer.listen(socketPath, handler)).rejects.toMatchObject({ code: 'in-use' });
    server.close();
    writeFileSync(socketPath, '');
    server = await ControlServer.listen(socketPath, handler);
    expect(await sendCommand(socketPath, 'stop')).toBe('stopping');
  });

  test('nobody there: says so', async () => {
    await expect(sendCommand(socketPath, 'status')).rejects.toMatchObject({ code: 'no-agent' });
  });

  test.each([
    ['not JSON', 'hello\n', 'malformed'],
    ['no command', '{}\n', 'unknown-command'],
    ['null', 'null\n', 'unknown-command'],
    ['a name off the prototype', '{"command":"constructor"}\n', 'unknown-command'],
    ['a command that is no string', '{"command":["status"]}\n', 'unknown-command'],
  ])('bad request: %s', async (_name, request, code) => {
    server = await ControlServer.listen(socketPath, handler);
    expect(JSON.parse(await raw(request))).toMatchObject({ ok: false, error: { code } });
    expect(await sendCommand(socketPath, 'stop')).toBe('stopping');
  });

  test('a request without end is cut off, and the agent goes on', async () => {
    server = await ControlServer.listen(socketPath, handler);
    expect(await raw('x'.repeat(100_000))).toBe('');
    expect(await sendCommand(socketPath, 'stop')).toBe('stopping');
  });
});

/** The first line that comes back, or '' when the connection is closed without one. */
function raw(request: string): Promise<string> {
  return new Promise((resolve) => {
    let text = '';
    const socket = createConnection(socketPath, () => socket.write(request));
    socket.on('data', (chunk) => {
      text += chunk;
      if (text.includes('\n')) socket.destroy();
    });
    socket.on('error', () => {});
    socket.on('close', () => resolve(text));
  });
}
