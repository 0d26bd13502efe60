/** What `protect` makes of its command line and of the configuration that there is. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Command } from 'commander';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  choosePort,
  givenKeys,
  type Standby,
  standbyAddress,
  withVmKeys,
} from '../../src/cli/protect-options.ts';
import { planFor } from '../../src/cli/protect-plan.ts';
import { vmOptions } from '../../src/cli/vm-options.ts';
import { readConfig } from '../../src/daemon/config.ts';
import { isOurs, putVmFile, vmFileText } from '../../src/daemon/vm-file.ts';

let folder: string;
let configFile: string;
beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'colo-protect-'));
  configFile = path.join(folder, 'agent.toml');
  mkdirSync(path.join(folder, 'conf.d'));
});
afterEach(() => rmSync(folder, { recursive: true }));

function given(...args: string[]): Record<string, unknown> {
  const command = withVmKeys(new Command('protect')).exitOverride();
  command.configureOutput({ writeErr: () => {} }).parse(args, { from: 'user' });
  return Object.fromEntries(givenKeys(command));
}

describe('the keys of a command line', () => {
  test('are those that were given, as they were written', () => {
    expect(given()).toEqual({});
    const args = ['--qmp', '/run/q', '--interval', '50', '--no-shadow', '--witness', 'none', '--insecure'];
    expect(given(...args, '--ungated', 'net0', '--ungated', '7', '--listen', ':7700')).toEqual({
      qmp: '/run/q',
      interval: 50,
      shadow: false,
      witness: 'none',
      insecure: true,
      ungated: ['net0', 7],
      listen: ':7700',
    });
  });

  test('name files as the daemon finds them', () => {
    expect(given('--qmp', 'q.sock')).toEqual({ qmp: path.resolve('q.sock') });
  });

  test('are checked as those of `primary`', () => {
    expect(() => given('--interval', '1')).toThrow('not a whole number from 5 to 60000');
    expect(() => given('--mode', 'fast')).toThrow('Allowed choices are pipelined, strict');
    for (const own of ['--peer', '--vm', '--node', '--state-dir', '--log-level'])
      expect(() => given(own, 'x'), own).toThrow('unknown option');
  });
});

describe('where the standby is', () => {
  test.each<[string, Standby]>([
    ['south', { host: 'south', port: null }],
    ['10.0.0.2:7000', { host: '10.0.0.2', port: 7000 }],
    ['[fe80::1]:7000', { host: 'fe80::1', port: 7000 }],
    ['[fe80::1]', { host: 'fe80::1', port: null }],
    ['fe80::1', { host: 'fe80::1', port: null }],
  ])('%s', (text, standby) => {
    expect(standbyAddress(text)).toEqual(standby);
  });

  test.each(['', ':7000', 'south:0', 'south:x', 'a b', '[south', '::x y'])('not %s', (text) => {
    expect(() => standbyAddress(text)).toThrow();
  });

  test('its port is the one that it has, or the first that no other VM has', () => {
    const others = ['7700', '7702'].map(
      (port, at) => `[vm.v${at}]\nqmp = "/q${at}"\npeer = "south:${port}"\n`,
    );
    writeFileSync(configFile, `${others.join('')}listen = ":7703"\n`);
    const config = readConfig(configFile, vmOptions());
    expect(choosePort(config, 'new', { host: 'south', port: 9 })).toEqual({ host: 'south', port: 9 });
    expect(choosePort(config, 'new', { host: 'south', port: null })).toEqual({ host: 'south', port: 7704 });
    expect(choosePort(config, 'v1', { host: 'south', port: null })).toEqual({ host: 'south', port: 7702 });
    expect(choosePort(config, 'v1', { host: 'west', port: null })).toEqual({ host: 'west', port: 7702 });
  });
});

describe('a VM’s file', () => {
  const VALUES = new Map<string, unknown>([
    ['qmp', '/a "q"\\\x7f\n'],
    ['interval', 50],
    ['shadow', false],
    ['ungated', ['net0', 'net1']],
    ['peer', 'south:7700'],
  ]);

  test('is what the daemon reads, whatever the VM’s name and the values', () => {
    writeFileSync(configFile, '');
    const text = vmFileText('web.1', VALUES);
    const file = path.join(folder, 'conf.d', 'web.1.toml');
    putVmFile(file, text);
    expect([isOurs(text), readFileSync(file, 'utf8')]).toEqual([true, text]);
    expect(statSync(file).mode & 0o777).toBe(0o644);
    expect(readConfig(configFile, vmOptions()).vms.get('web.1')?.own).toEqual(VALUES);
    putVmFile(file, null);
    expect(readConfig(configFile, vmOptions()).vms.size).toBe(0);
  });

  test('is checked together with everything else before it is there', () => {
    writeFileSync(configFile, '[vm.b]\nqmp = "/b"\npeer = "south:7000"\n');
    const plan = () => planFor(configFile, 'a', { host: 'south', port: null }, new Map([['qmp', '/b']]));
    expect(plan).toThrow('a.toml:5:1: VM `a` has the same `qmp`, /b, as VM `b`: each needs its own');
    expect(() => readFileSync(path.join(folder, 'conf.d', 'a.toml'))).toThrow('ENOENT');
  });

  test('that a person wrote is that person’s', () => {
    writeFileSync(configFile, '[vm.b]\nqmp = "/b"\npeer = "south:7000"\n');
    const south = { host: 'south', port: 7000 };
    expect(planFor(configFile, 'b', south, new Map()).text).toBeNull();
    expect(() => planFor(configFile, 'b', south, new Map([['interval', 50]]))).toThrow(
      `VM b stands at ${configFile}:1:2, which \`protect\` didn't write`,
    );
    writeFileSync(path.join(folder, 'conf.d', 'c.toml'), '# nothing\n');
    expect(() => planFor(configFile, 'c', south, new Map([['qmp', '/c']]))).toThrow(
      'is there already, without VM c',
    );
  });
});
