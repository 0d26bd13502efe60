/** What passes between the two halves of `colo-agent standby`, and the forms that a command line has. */
import { describe, expect, test } from 'vitest';
import { shellText } from '../../src/standby/command.ts';
import { OptionValue } from '../../src/standby/option-value.ts';
import { parsePlan } from '../../src/standby/plan.ts';
import { startCommand } from '../../src/standby/start.ts';

describe('values', () => {
  test.each([
    ['tap,id=n0,ifname=a,,b', 'type'],
    ['server,nowait,path=x', ''],
    ['a=1,b=2,a=3', ''],
    ['{"driver":"x","cache":{"direct":true,"no-flush":false},"n":[{"str":"a"}],"v":null,"i":3}', 'driver'],
  ])('%s comes out as it went in', (text, firstKey) => {
    expect(new OptionValue(text, firstKey).toString()).toBe(text);
  });

  test('a switch in JSON stays one', () => {
    const value = new OptionValue('{"server":true,"wait":true}', '');
    value.set('wait', 'off');
    expect(value.toString()).toBe('{"server":true,"wait":false}');
  });
});

test('the text for a shell means the words', () => {
  expect(shellText(['qemu', '-append', "it's $HOME; a b", '-S'])).toBe(
    `qemu \\\n  -append 'it'\\''s $HOME; a b' \\\n  -S`,
  );
});

const good = {
  version: 1 as const,
  vm: 'web1',
  command: ['/usr/bin/qemu-system-x86_64', '-S'],
  qmpPath: '/sb/qmp',
  folder: '/sb',
  privateFolders: [],
  disks: [{ id: 'vda', file: '/sb/vda.raw', sizeBytes: 512 }],
  needed: [{ what: 'QEMU', path: '/usr/bin/qemu-system-x86_64' }],
  differences: [],
};

test('in a scope QEMU is no part of the service that starts it', () => {
  expect(startCommand(good, true)).toEqual([
    ...['systemd-run', '--scope', '--quiet', '--collect', '--unit', 'colo-vm-web1.scope', '--'],
    ...good.command,
  ]);
  expect(startCommand(good, false)).toEqual(good.command);
});

describe('a plan from the other host', () => {
  test('is read as it was written', () => {
    expect(parsePlan(JSON.stringify(good))).toEqual(good);
  });

  test.each([
    ['not JSON', '{'],
    ['null', 'null'],
    ['of another version', { ...good, version: 2 }],
    ['without a command', { ...good, command: ['qemu'] }],
    ['with a relative path', { ...good, qmpPath: 'qmp' }],
    ['with a name that leads elsewhere', { ...good, vm: '../x' }],
    ['with a disk without a size', { ...good, disks: [{ id: 'a', file: '/a' }] }],
  ])('%s is refused', (_, text) => {
    const given = typeof text === 'string' ? text : JSON.stringify(text);
    expect(() => parsePlan(given)).toThrow(
      /^this is no plan for a standby: .*colo-agent standby --qmp SOCKET --json$/s,
    );
  });
});
