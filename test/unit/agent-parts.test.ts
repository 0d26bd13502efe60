import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Log } from '../../src/agent/log.ts';
import { formatHostPort, hostOfPeer, parseHostPort } from '../../src/agent/peer-address.ts';
import { quantile, Samples } from '../../src/agent/samples.ts';
import { SerialQueue } from '../../src/agent/serial-queue.ts';

describe('Samples', () => {
  test('none yet', () => {
    expect(new Samples().summary()).toEqual({ last: null, p50: null, p99: null, max: null });
  });

  test('quantiles are nearest-rank over the last 1,024, the maximum is over all', () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 0, max: 100_000 }), { minLength: 1, maxLength: 3000 }),
        (values) => {
          const samples = new Samples();
          for (const value of values) samples.add(value);
          const window = values.slice(-1024).sort((a, b) => a - b);
          expect(samples.summary()).toEqual({
            last: values.at(-1),
            p50: window[Math.ceil(window.length * 0.5) - 1],
            p99: window[Math.ceil(window.length * 0.99) - 1],
            max: values.reduce((a, b) => Math.max(a, b)),
          });
          expect(samples.count).toBe(values.length);
        },
      ),
      { numRuns: 50 },
    );
  });

  test('a quantile of nothing is not a number', () => {
    expect(quantile([], 0.5)).toBeNaN();
  });
});

describe('SerialQueue', () => {
  test('begins at once when free, then one after the other, and a failure holds up nobody', async () => {
    const queue = new SerialQueue();
    const order: string[] = [];
    const slow = queue.run(async () => {
      order.push('slow begins');
      await new Promise((resolve) => setImmediate(resolve));
      order.push('slow ends');
    });
    expect(order).toEqual(['slow begins']);
    const failing = queue.run(async () => {
      order.push('failing');
      throw new Error('no');
    });
    const last = queue.run(async () => order.push('last'));
    await slow;
    await expect(failing).rejects.toThrow('no');
    await last;
    expect(order).toEqual(['slow begins', 'slow ends', 'failing', 'last']);
  });
});

describe('parseHostPort', () => {
  test.each([
    ['host.example:7000', 'host.example', 7000],
    ['10.0.0.1:1', '10.0.0.1', 1],
    ['[fe80::1%eth0]:65535', 'fe80::1%eth0', 65535],
    ['[fe80::1%br-colo_2]:7000', 'fe80::1%br-colo_2', 7000],
  ])('%s', (text, host, port) => {
    expect(parseHostPort(text)).toEqual({ host, port });
    expect(formatHostPort({ host, port })).toBe(text);
  });

  test('an empty host and port 0 are for listening', () => {
    expect(parseHostPort(':0', { portZero: true })).toEqual({ host: '::', port: 0 });
  });

  test.each([
    '',
    'host',
    'host:',
    ':7000',
    'host:0',
    'host:65536',
    'host:-1',
    'host:7x',
    '::1:7000',
    '[::1]',
    '[::1:7000',
    'a:b:7000',
  ])('refuses %j and says why', (text) => {
    expect(() => parseHostPort(text)).toThrow(RangeError);
  });
});

describe('Log', () => {
  test('one JSON object a line, with the fields of the moment', () => {
    const lines: string[] = [];
    let epoch = 1;
    const log = new Log(
      'info',
      () => ({ vm: 'a', epoch }),
      (line) => lines.push(line),
    );
    log.info('one');
    epoch = 2;
    log.error('two', { reason: 'because\n"so"' });
    log.debug('not this');
    expect(lines.map((line) => JSON.parse(line))).toMatchObject([
      { level: 'info', vm: 'a', epoch: 1, message: 'one' },
      { level: 'error', vm: 'a', epoch: 2, message: 'two', reason: 'because\n"so"' },
    ]);
    expect(lines.every((line) => line.indexOf('\n') === line.length - 1)).toBe(true);
  });
});

test.each([
  ['10.0.0.1:40000', '10.0.0.1'],
  ['[2001:db8::1]:40000', '2001:db8::1'],
  ['[fe80::1%br-colo]:40000', 'fe80::1%br-colo'],
  ['unknown', 'unknown'],
])('the peer %s came from the host %s', (peer, host) => {
  expect(hostOfPeer(peer)).toBe(host);
});
