/** What is said of the doctor's findings, and where errors name its lines. */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { connectPeer } from '../../src/agent/peer-address.ts';
import { exitCodeFor } from '../../src/cli/doctor.ts';
import { doctorText } from '../../src/cli/doctor-text.ts';
import { CliError } from '../../src/cli/exit-codes.ts';
import { CHECKS, type Examined } from '../../src/doctor/doctor.ts';
import { CHECK_NAMES } from '../../src/doctor/finding.ts';
import { checksOf, checksOfReason, hint } from '../../src/doctor/hints.ts';
import { QmpError } from '../../src/qmp/error.ts';
import { PreflightError, type Problem } from '../../src/vm/preflight.ts';

const ROOT = path.join(import.meta.dirname, '..', '..');

test('every name has its check and its row in the manual, in this order', () => {
  expect(CHECKS.map(({ name }) => name)).toEqual([...CHECK_NAMES]);
  const manual = readFileSync(path.join(ROOT, 'docs', 'doctor.md'), 'utf8');
  const rows = [...manual.matchAll(/^\| `([a-z-]+)` \|/gm)].map(([, name]) => name);
  expect(rows).toEqual([...CHECK_NAMES]);
});

describe('the line that would have told of an error', () => {
  const problem = (check: Problem['check']): Problem => ({ check, where: 'a', what: 'b', remedy: 'c' });
  const named = (name: string) => Object.assign(new Error('x'), { name });
  const coded = (code: string, more = {}) => Object.assign(new Error('x'), { code, ...more });

  test.each<[string, unknown, string[]]>([
    [
      'problems of a VM',
      new PreflightError([problem('nics'), problem('disks'), problem('nics')]),
      ['nics', 'disks'],
    ],
    ['no monitor', new QmpError('ConnectFailed', 'x', ''), ['qmp']],
    ['a command that fails', new QmpError('GenericError', 'x', 'add-fd'), ['qemu']],
    ['a standby that runs', named('NotAStandbyError'), ['run-state']],
    ['another node', named('GenerationFileError'), ['state-dir']],
    ['no rights at the witness', named('WitnessAccessError'), ['witness']],
    ['a record that is none', named('DiskRecordError'), ['replication']],
    ["RAM that can't be found", named('RamBlocksError'), ['ptrace']],
    ['a domain that has no monitor', named('LibvirtError'), ['libvirt']],
    ['a domain that does not run', named('DomainUnavailableError'), ['libvirt']],
    ['keys', coded('ERR_COLO_CREDENTIALS'), ['keys']],
    ['a port that is taken', coded('ERR_COLO_LISTEN'), ['listen']],
    ['no tracing', coded('ERR_COLO_UFFD_DENIED'), ['ptrace']],
    ['another tracker', coded('ERR_COLO_UFFD_BUSY'), ['userfaultfd']],
    ['a watchdog', coded('ERR_COLO_WATCHDOG'), ['watchdog']],
    ['another agent', coded('in-use'), ['agent']],
    ["another user's QEMU", coded('EACCES', { path: '/proc/7/fd' }), ['ptrace']],
    ['another file', coded('EACCES', { path: '/etc/x' }), []],
    ['a password that others can read', new CliError(78, 'x', 'witness'), ['witness']],
    ['a wrong option', new CliError(64, 'x'), []],
    ['an agent that is refused', { outcome: 'refused' }, ['witness']],
    ['an agent that was stopped', { outcome: 'stopped' }, []],
    ['no object', 'x', []],
  ])('%s', (_, failure, checks) => {
    expect(checksOf(failure)).toEqual(checks);
  });

  test('is named behind the text', () => {
    expect(hint(['nics'])).toBe(' (doctor: `nics` tells more)');
    expect(hint(['nics', 'disks'])).toBe(' (doctor: `nics`, `disks` tell more)');
    expect(hint([])).toBe('');
  });

  test("is known for a standby that can't be reached, in the words of who has tried", async () => {
    const reason = await new Promise<string>((onLost) => {
      const nothing = () => {};
      connectPeer({ host: '127.0.0.1', port: 1 }, null, { onConnected: nothing, onMessage: nothing, onLost });
    });
    expect(checksOfReason(reason)).toEqual(['peer']);
  });

  test("and for a standby that doesn't match, in the words of the protocol's golden script", () => {
    const script = readFileSync(path.join(ROOT, 'test/unit/protocol-golden/incompatible.txt'), 'utf8');
    const [, reason = ''] = /^P is EXPOSED: (.*)$/m.exec(script) ?? [];
    expect(checksOfReason(reason)).toEqual(['match']);
    expect(checksOfReason('the standby has the first copy')).toEqual([]);
  });
});

const examined = (change: Partial<Examined>): Examined => ({
  name: 'nics',
  title: 'x',
  fault: 'configuration',
  verdict: 'ok',
  found: 'well',
  remedy: '',
  ...change,
});

test("people read a line of 80 columns at most, what wasn't asked last, and the sum", () => {
  const long = 'some words that go on '.repeat(8).trim();
  const text = doctorText([
    examined({}),
    examined({ name: 'peer', verdict: 'not asked', found: 'no peer was named (--peer)' }),
    examined({ name: 'disks', verdict: 'fail', found: long, remedy: long }),
    examined({ name: 'clock', verdict: 'not asked', found: 'no peer was named (--peer)' }),
  ]);
  expect(text).toMatchInlineSnapshot(`
    "ok    nics         well
    FAIL  disks        some words that go on some words that go on some words that
                       go on some words that go on some words that go on some words
                       that go on some words that go on some words that go on
                       -> some words that go on some words that go on some words
                          that go on some words that go on some words that go on
                          some words that go on some words that go on some words
                          that go on
    -     not asked    peer, clock: no peer was named (--peer)
    1 ok, 0 to look at, 1 failed, 2 not asked
    "
  `);
  for (const line of text.split('\n')) expect(line.length).toBeLessThanOrEqual(80);
});

test.each<[string, Partial<Examined>[], number]>([
  ['nothing fails', [{}, { verdict: 'warn' }, { verdict: 'not asked' }], 0],
  ["something isn't there", [{}, { verdict: 'fail', fault: 'unavailable' }], 69],
  [
    'something has to be set right',
    [
      { verdict: 'fail', fault: 'unavailable' },
      { verdict: 'fail', fault: 'configuration' },
    ],
    78,
  ],
])('the exit code when %s', (_, all, code) => {
  expect(exitCodeFor(all.map(examined))).toBe(code);
});
