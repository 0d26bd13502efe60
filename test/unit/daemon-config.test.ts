import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { vmOptions } from '../../src/cli/vm-options.ts';
import { type DaemonConfig, readConfig } from '../../src/daemon/config.ts';
import { ConfigError } from '../../src/daemon/toml.ts';

const options = vmOptions();
let folder: string;

beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'colo-config-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

function read(text: string, dropIns: Record<string, string> = {}): DaemonConfig {
  writeFileSync(path.join(folder, 'agent.toml'), text);
  mkdirSync(path.join(folder, 'conf.d'), { recursive: true });
  for (const [name, each] of Object.entries(dropIns)) writeFileSync(path.join(folder, 'conf.d', name), each);
  return readConfig(path.join(folder, 'agent.toml'), options);
}

/** What is wrong, with the folder's name left out. */
function problems(text: string, dropIns: Record<string, string> = {}): string[] {
  try {
    read(text, dropIns);
  } catch (error) {
    if (error instanceof ConfigError) return error.problems.map((each) => each.replaceAll(`${folder}/`, ''));
    throw error;
  }
  return [];
}

const WEB = '[vm.web]\nqmp = "/run/web.qmp"\npeer = "10.0.0.2:7000"\n';
const DB = '[vm.db]\nqmp = "/run/db.qmp"\nlisten = "10.0.0.1:7001"\n';

describe('a good configuration', () => {
  test.each([
    ['', null],
    ['web = false\n', null],
    ['web = true\n', { host: '127.0.0.1', port: 7780 }],
    ['web = 7781\n', { host: '127.0.0.1', port: 7781 }],
    ['web = ":7781"\n', { host: '::', port: 7781 }],
    ['web = "unix:/run/w.sock"\n', { path: '/run/w.sock' }],
  ])('where the page is: %s', (text, address) => expect(read(text).web).toEqual(address));

  test('a VM has what the host, the defaults and its own table say, in this order', () => {
    const { vms, stateFolder, controlGroup, metrics } = read(
      `metrics = "unix:/run/m.sock"\nstate-dir = "/var/lib/x"\ncontrol-group = "wheel"\n[defaults]\ninterval = 50\nshadow = false\nungated = ["net1", "-x"]\n${WEB}interval = 40\n`,
      { 'db.toml': DB, 'notes.txt': 'not TOML' },
    );
    expect({ stateFolder, controlGroup }).toEqual({ stateFolder: '/var/lib/x', controlGroup: 'wheel' });
    expect(metrics).toEqual({ path: '/run/m.sock' });
    expect([...vms.keys()]).toEqual(['web', 'db']);
    expect(vms.get('web')).toMatchObject({ role: 'auto', source: { qmp: '/run/web.qmp' } });
    const common = [
      '--state-dir=/var/lib/x',
      '--interval=40',
      '--no-shadow',
      '--ungated=net1',
      '--ungated=-x',
    ];
    expect(vms.get('web')?.args).toEqual({
      primary: ['--vm=web', ...common, '--qmp=/run/web.qmp', '--peer=10.0.0.2:7000'],
      standby: null,
    });
    expect(vms.get('db')?.args.primary).toBeNull();
    expect(vms.get('db')?.args.standby).toContain('--listen=10.0.0.1:7001');
  });

  test('of an option that one role alone has the other is told nothing', () => {
    const { vms } = read(`${WEB}listen = "10.0.0.1:7000"\noverwrite-disk = ["disk0"]\n`);
    expect(vms.get('web')?.args.standby).toContain('--overwrite-disk=disk0');
    expect(vms.get('web')?.args.primary).not.toContain('--overwrite-disk=disk0');
  });

  test('a VM of libvirt has its domain instead of a socket', () => {
    const web = read('[vm.web]\nlibvirt = "web-1"\npeer = "10.0.0.2:7000"\n').vms.get('web');
    expect(web?.source).toEqual({ libvirt: 'web-1' });
    expect(web?.args.primary).toEqual(['--vm=web', '--libvirt=web-1', '--peer=10.0.0.2:7000']);
  });

  test('port 0 is nobody’s own, and an empty configuration has no VMs', () => {
    const any = '[vm.NAME]\nqmp = "/NAME"\nlisten = "127.0.0.1:0"\n';
    expect(read(any.replaceAll('NAME', 'a') + any.replaceAll('NAME', 'b')).vms.size).toBe(2);
    expect(read('').vms.size).toBe(0);
  });
});

describe('a bad configuration says where, what, and what to do', () => {
  test.each([
    [`${WEB}intervall = 50\n`, 'agent.toml:4:1: unknown key `intervall`; did you mean `interval`?'],
    [`${WEB}interval = 1\n`, 'agent.toml:4:1: `interval = 1`: not a whole number from 5 to 60000'],
    [
      `${WEB}interval = 1.5\n`,
      'agent.toml:4:1: `interval` is a text or a whole number, not 1.5: write it in quotes',
    ],
    [`${WEB}interval = [50]\n`, 'agent.toml:4:1: `interval` has one value, not a list: write it without [ ]'],
    [`${WEB}shadow = "no"\n`, 'agent.toml:4:1: `shadow` is true or false, not "no"'],
    [`${WEB}mode = "fast"\n`, 'agent.toml:4:1: `mode = "fast"`: Allowed choices are pipelined, strict.'],
    [
      `${WEB}witness = "http://etcd"\n`,
      "agent.toml:4:1: `witness = \"http://etcd\"`: 'http://etcd' names no port (etcd's is usually 2379)",
    ],
    [`${WEB}control = "/x"\n`, "agent.toml:4:1: `control` is the daemon's to say: leave it out"],
    [
      `${WEB}role = "secondary"\n`,
      'agent.toml:4:1: `role` is "auto", "primary" or "standby", not "secondary"',
    ],
    [
      `${WEB}role = "standby"\n`,
      'agent.toml:1:2: VM `web` is to be a standby and has no `listen`: `peer = "HOST:PORT"` is where its standby is, `listen = "HOST:PORT"` where it is one',
    ],
    [`${WEB}qmp = "/other"\n`, 'agent.toml:4:1: this is no TOML: Defining a key multiple times is invalid'],
    [
      `${WEB}min-interval = 500\n`,
      'agent.toml:1:2: VM `web` as a primary: --min-interval 500 is longer than --interval 100',
    ],
    [
      '[vm.web]\npeer = "a:1"\n',
      "agent.toml:1:2: VM `web` has no `qmp`: give the path of its QEMU's QMP socket, or `libvirt` with the name of its domain",
    ],
    [
      `${WEB}libvirt = "web"\n`,
      'agent.toml:1:2: VM `web` has `qmp` and `libvirt`: one of them says which VM it is, leave the other out',
    ],
    [
      '[vm.web]\nqmp = "/q"\n',
      'agent.toml:1:2: VM `web` has neither `peer` nor `listen`: `peer = "HOST:PORT"` is where its standby is, `listen = "HOST:PORT"` where it is one',
    ],
    [
      '[vm."../x"]\nqmp = "/q"\npeer = "a:1"\n',
      'agent.toml:1:2: `../x`: a VM name is 1-63 letters, digits, dots, dashes or underscores, and begins with a letter or digit',
    ],
    ['[[vm]]\nqmp = "/q"\n', 'agent.toml:1:3: [[vm]] is a list of tables: write [vm]'],
    ['vm = 1\n', 'agent.toml:1:1: `vm` is a table: write [vm]'],
    ['interval = 50\n', 'agent.toml:1:1: unknown key `interval`; it belongs below [defaults] or [vm.NAME]'],
    ['[default]\n', 'agent.toml:1:2: unknown key `default`; did you mean `defaults`?'],
    ['[defaults]\nnode = "a"\n', "agent.toml:2:1: `node` is the host's: write it above all tables"],
    ['metrics = "x"\n', 'agent.toml:1:1: `metrics = "x"`: '],
    ['web = "north"\n', 'agent.toml:1:1: `web = "north"`: '],
    ['web = [7780]\n', 'agent.toml:1:1: `web` is an address: PORT, "HOST:PORT" or "unix:PATH"'],
    ['metrics = true\n', 'agent.toml:1:1: `metrics` is an address: PORT, "HOST:PORT" or "unix:PATH"'],
    [`${WEB}node = "a\\u0000b"\n`, 'agent.toml:4:1: `node` has a NUL in it'],
    [
      `[vm.web]\nqmp = "/${'x'.repeat(107)}"\npeer = "a:1"\n`,
      "agent.toml:2:1: `qmp`: the path has 108 bytes, and a socket's 107 at the most: have QEMU make it elsewhere",
    ],
    [
      `${WEB}[vm.web]\n`,
      'agent.toml:4:5: this is no TOML: Defining a key multiple times is invalid: one of the two must go',
    ],
    ['[vm.web\n', 'agent.toml:2:1: this is no TOML: Unterminated table-key'],
  ])('%s', (text, problem) => {
    expect(problems(text)[0]).toContain(problem);
  });

  test('all of it at once', () => {
    expect(problems(`${WEB}intervall = 50\nmod = "x"\n`)).toHaveLength(2);
  });

  test.each([
    ['listen', '10.0.0.1:7001'],
    ['qmp', '/run/db.qmp'],
  ])('two VMs with the same %s', (key, value) => {
    const other = DB.replace('vm.db', 'vm.other').replace(/(qmp|listen) = .*/g, (line, each) =>
      each === key ? line : `${each} = "${each === 'qmp' ? '/run/other' : '10.0.0.1:7002'}"`,
    );
    const line = other.split('\n').findIndex((each) => each.startsWith(key)) + 1;
    expect(problems('', { 'db.toml': DB, 'other.toml': other })).toEqual([
      `conf.d/other.toml:${line}:1: VM \`other\` has the same \`${key}\`, ${value}, as VM \`db\`: each needs its own`,
    ]);
  });

  test('two that serve their metrics at one address, however it is written', () => {
    const db = `${DB}metrics = "127.0.0.1:9464"\n`;
    const other = 'has the same `metrics`, 127.0.0.1:9464, as';
    expect(problems(`${WEB}metrics = 9464\n`, { 'db.toml': db })).toEqual([
      `conf.d/db.toml:4:1: VM \`db\` ${other} VM \`web\`: each needs its own`,
    ]);
    expect(problems('metrics = 9464\n', { 'db.toml': db })).toEqual([
      `conf.d/db.toml:4:1: VM \`db\` ${other} the daemon: each needs its own`,
    ]);
  });

  test('a VM that stands in two files, and what a file of conf.d may not hold', () => {
    expect(problems(DB, { 'db.toml': DB })[0]).toBe(
      'conf.d/db.toml:1:2: VM `db` stands at agent.toml:1:2 already: one of the two must go',
    );
    expect(problems('', { 'x.toml': '[defaults]\ninterval = 50\n' })[0]).toBe(
      'conf.d/x.toml:1:2: files in conf.d hold VMs alone: write [vm.NAME], or `defaults` in agent.toml',
    );
  });

  test('a conf.d that is no folder', () => {
    writeFileSync(path.join(folder, 'agent.toml'), WEB);
    writeFileSync(path.join(folder, 'conf.d'), '');
    expect(() => readConfig(path.join(folder, 'agent.toml'), options)).toThrow(
      /conf\.d: it can't be read: ENOTDIR/,
    );
  });

  test('a file that is not there', () => {
    expect(() => readConfig(path.join(folder, 'none.toml'), options)).toThrow(/none.toml: it can't be read/);
  });
});
