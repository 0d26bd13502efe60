import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  chownSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { createConnection, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { sendCommand } from '../../src/agent/control-client.ts';
import { ControlError, ControlServer } from '../../src/agent/control-server.ts';
import { answersAt, listenAtPath } from '../../src/agent/socket-path.ts';
import type { Status } from '../../src/agent/status.ts';

let folder: string;
let socketPath: string;
let server: ControlServer | null = null;

const handler = {
  status: () => ({ vm: 'test', state: 'PROTECTED' }) as Status,
  takeOvers: () => [],
  failover: async (): Promise<string> => {
    throw new ControlError('refused', 'the primary lives');
  },
  drill: async () => {
    throw new ControlError('refused', 'it is not PROTECTED');
  },
  stop: async () => 'stopping',
};

const STRANGER = 65534;
const GROUP = 54321;

/** What the socket answers to a process of that user. */
async function askAs(who: { uid?: number; gid?: number }): Promise<unknown> {
  const program = `
    const socket = require('node:net').connect(process.argv[1]);
    socket.on('data', (text) => { process.stdout.write(text); socket.destroy(); });
    socket.write('{"command":"stop"}\\n');
    socket.on('error', () => {});
  `;
  const child = spawn(process.execPath, ['-e', program, socketPath], { ...who, cwd: '/' });
  const [answer] = await once(child.stdout, 'data');
  return JSON.parse(String(answer));
}

beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'colo-control-'));
  socketPath = path.join(folder, 'sub', 'control.sock');
});

afterEach(() => {
  server?.close();
  server = null;
  rmSync(folder, { recursive: true });
});

/** A client that asks for the status and never ends its side: it writes until that fails. Resolves with all that it was answered. */
async function cling(who: { uid?: number; gid?: number }, onAnswer: () => void = () => {}): Promise<string> {
  const program = `
    const socket = require('node:net').connect({ path: process.argv[1], allowHalfOpen: true });
    socket.on('data', (text) => process.stdout.write(text));
    socket.on('error', () => {});
    socket.on('close', () => process.exit());
    socket.write('{"command":"status"}\\n');
    setInterval(() => socket.write('x'), 20);
  `;
  const child = spawn(process.execPath, ['-e', program, socketPath], { ...who, cwd: '/' });
  let answers = '';
  child.stdout.on('data', (text) => {
    answers += text;
    onAnswer();
  });
  await once(child, 'close');
  return answers;
}

/** What a process that was killed leaves behind. */
async function deadSocket(at: string): Promise<void> {
  const dead = createServer();
  await listenAtPath(dead, `${at}.dead`);
  renameSync(`${at}.dead`, at);
  await new Promise((resolve) => dead.close(resolve));
}

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

  test('serves root, its owner and its group, whatever mode somebody gave it', async () => {
    server = await ControlServer.listen(socketPath, handler);
    for (const each of [folder, path.dirname(socketPath)]) chmodSync(each, 0o755);
    chmodSync(socketPath, 0o666);
    chownSync(socketPath, 0, GROUP);
    expect(await askAs({ uid: STRANGER, gid: STRANGER })).toMatchObject({
      error: {
        code: 'not-permitted',
        message: `user ${STRANGER} is neither root nor of the group of ${socketPath}`,
      },
    });
    expect(await askAs({ uid: STRANGER, gid: GROUP })).toMatchObject({ ok: true });
    expect(await askAs({})).toMatchObject({ ok: true });
  });

  test('who is refused is left, whether he goes or not', async () => {
    server = await ControlServer.listen(socketPath, handler);
    for (const each of [folder, path.dirname(socketPath)]) chmodSync(each, 0o755);
    chmodSync(socketPath, 0o666);
    expect(JSON.parse(await cling({ uid: STRANGER, gid: STRANGER }))).toMatchObject({
      error: { code: 'not-permitted' },
    });
  });

  test('a client that stays does not hold an agent that ends', async () => {
    server = await ControlServer.listen(socketPath, handler);
    expect(JSON.parse(await cling({}, () => server?.close()))).toMatchObject({ ok: true });
  });

  test('so many clients and no more', async () => {
    server = await ControlServer.listen(socketPath, handler);
    const idle = await Promise.all(
      Array.from({ length: 64 }, async () => {
        const socket = createConnection(socketPath);
        await once(socket, 'connect');
        return socket;
      }),
    );
    await expect(sendCommand(socketPath, 'status')).rejects.toMatchObject({
      code: 'busy',
      message: expect.stringContaining('64 clients'),
    });
    idle[0]?.destroy();
    await expect.poll(() => sendCommand(socketPath, 'stop').catch(() => null)).toBe('stopping');
    for (const socket of idle) socket.destroy();
  });

  test('a client that asks and does not read, and one that never ends its request, are left', async () => {
    server = await ControlServer.listen(socketPath, handler);
    const slow = createConnection(socketPath);
    slow.write('{"comm');
    const deaf = createConnection(socketPath).on('error', () => {});
    deaf.pause();
    deaf.write('{"command":"status"}\n'.repeat(50_000));
    const left = new Promise((resolve) => deaf.on('close', resolve));
    await Promise.all([once(slow, 'close'), left]);
    expect(await sendCommand(socketPath, 'stop')).toBe('stopping');
  });

  test('a second agent at the same path is refused; a dead agent’s socket is not', async () => {
    server = await ControlServer.listen(socketPath, handler);
    await expect(ControlServer.listen(socketPath, handler)).rejects.toMatchObject({ code: 'in-use' });
    server.close();
    await deadSocket(socketPath);
    server = await ControlServer.listen(socketPath, handler);
    expect(await sendCommand(socketPath, 'stop')).toBe('stopping');
  });

  test('a file that is no socket stays what it is', async () => {
    mkdirSync(path.dirname(socketPath), { recursive: true });
    writeFileSync(socketPath, 'somebody’s');
    await expect(ControlServer.listen(socketPath, handler)).rejects.toThrow(
      `${socketPath} is there, and is no socket`,
    );
    expect(readFileSync(socketPath, 'utf8')).toBe('somebody’s');
  });

  test('connections that can’t be accepted end nobody', async () => {
    const plain = createServer();
    await listenAtPath(plain, socketPath);
    for (const code of ['ENFILE', 'ENOMEM']) plain.emit('error', new Error(`accept ${code}`));
    expect(await answersAt(socketPath)).toBe(true);
    plain.close();
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
