/** Two doctors over real connections, and what one that listens does with those who ask for something else. */
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { expect, onTestFinished, test } from 'vitest';
import type { Portrait } from '../../src/doctor/portrait.ts';
import { Reception, TAKE_BYTES_MAX } from '../../src/doctor/reception.ts';
import { Visit } from '../../src/doctor/visit.ts';
import { encodePreface } from '../../src/protocol/preface.ts';

const PORTRAIT: Portrait = {
  version: '1.2.3',
  host: 'south',
  kernel: '6.18',
  cpu: { model: 'one', flags: ['fpu'] },
  role: 'secondary',
  description: null,
};

function receive(): Reception {
  const reception = new Reception({ host: '127.0.0.1', port: 0 }, null, PORTRAIT);
  onTestFinished(() => reception.close());
  return reception;
}

async function visit({ port }: Reception): Promise<Visit> {
  const visitor = await Visit.pay({ host: '127.0.0.1', port }, null);
  onTestFinished(() => visitor.close());
  return visitor;
}

/** Resolves with all that came until the connection was closed at the other end. */
async function ask({ port }: Reception, link: 'doctor' | 'control', question: string): Promise<string> {
  const socket = connect({ host: '127.0.0.1', port });
  let answer = '';
  socket.on('data', (chunk) => {
    answer += chunk;
  });
  socket.on('error', () => {}); // being cut off is what is expected
  socket.write(encodePreface({ link }));
  socket.write(question);
  await once(socket, 'close');
  return answer;
}

test("one learns of the other's host, of the way there, and of its clock", async () => {
  const visitor = await visit(receive());
  expect(visitor.portrait).toEqual(PORTRAIT);
  const { medianMs, longestMs, clockAheadMs, clockErrorMs } = await visitor.roundTrips();
  expect(medianMs).toBeGreaterThan(0);
  expect(longestMs).toBeGreaterThanOrEqual(medianMs);
  expect(Math.abs(clockAheadMs)).toBeLessThanOrEqual(clockErrorMs + 1);
  expect(await visitor.measureBandwidth()).toBeGreaterThan(0);
  expect(await visitor.roundTrips()).toMatchObject({ medianMs }); // not measured once more
});

test('an end in the middle is an error, no wait', async () => {
  const reception = receive();
  const visitor = await visit(reception);
  reception.close();
  await expect(visitor.roundTrips()).rejects.toThrow(/the peer's doctor doesn't answer/);
});

test.each([
  ['no JSON', 'hello\n'],
  ['an unknown question', '{"run":"rm"}\n'],
  ['null', 'null\n'],
  ['too much to take', `{"take":${TAKE_BYTES_MAX + 1}}\n`],
  ['less than nothing to take', '{"take":-1}\n'],
  ['a line without an end', 'x'.repeat((1 << 20) + 1)],
])('%s ends the conversation, and the next one is answered', async (_, question) => {
  const reception = receive();
  await ask(reception, 'doctor', question);
  expect((await visit(reception)).portrait).toEqual(PORTRAIT);
});

test('an agent that comes by mistake is sent away without a word', async () => {
  expect(await ask(receive(), 'control', '')).toBe('');
});

test('so is who comes when enough are there', async () => {
  const reception = receive();
  const waiting: Socket[] = [];
  for (let i = 0; i < 4; i++) {
    const socket = connect({ host: '127.0.0.1', port: reception.port });
    onTestFinished(() => void socket.destroy());
    waiting.push(socket);
    socket.write(encodePreface({ link: 'doctor' }));
    await once(socket, 'data');
  }
  expect((await visit(reception)).portrait).toBeNull();
  waiting[0]?.destroy();
});
