/** `colo-agent doctor` on set-ups that are broken in one way each: the line that tells of it says what an agent says, and what to do; the others don't complain. */
import { type ChildProcess, spawn } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { chmodSync, cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { hostCredentials, trustCertificate } from '../../src/agent/credential-files.ts';
import { CHECKS, type Examined } from '../../src/doctor/doctor.ts';
import { native } from '../../src/native/binding.ts';
import { QmpClient } from '../../src/qmp/client.ts';
import { Child } from '../../src/testbed/child.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { pairedFolders } from '../../src/testbed/credentials.ts';
import { TestEtcd } from '../../src/testbed/etcd.ts';
import type { TestVm } from '../../src/testbed/vm.ts';
import { waitFor } from '../../src/testbed/wait.ts';
import { WallClock } from '../chaos/wall-clock.ts';
import { colo, type Ended, MAIN } from './support/cli.ts';
import {
  type GuestOptions,
  standbyOf,
  startSecondary,
  startVm,
  VM_NAME,
  waitBooted,
} from './support/protection.ts';

const GUEST: GuestOptions = { guest: 'baremetal', disks: [{ id: 'vda', sizeMiB: 1 }] };
/** Each of its parts is a fault of its own. Standing, so that it is nobody's standby's twin that runs. */
const BROKEN: GuestOptions = {
  guest: 'baremetal',
  machine: 'pc',
  disks: [{ id: 'hda', sizeMiB: 1, bus: 'ide' }],
  extraArgs: [
    ...['-netdev', 'hubport,id=hub0,hubid=0', '-device', 'virtio-net-pci,id=nic0,netdev=hub0'],
    ...['-m', '64M,slots=1,maxmem=800G', '-object', 'memory-backend-memfd,id=much,size=768G,reserve=off'],
    ...['-device', 'pc-dimm,id=dimm0,memdev=much'],
  ],
};

const cleanup = new Cleanup();
let folder: string;
let primaryVm: TestVm;
let standbyVm: TestVm;
let brokenVm: TestVm;
let etcd: TestEtcd;
beforeAll(async () => {
  folder = mkdtempSync(path.join(tmpdir(), 'colo-doctor-'));
  cleanup.add(() => rmSync(folder, { recursive: true, force: true }));
  [primaryVm, standbyVm, brokenVm, etcd] = await Promise.all([
    startVm(cleanup, 'primary', GUEST, false),
    startVm(cleanup, 'standby', standbyOf(GUEST), true),
    startVm(cleanup, 'broken', BROKEN, true),
    TestEtcd.start(),
  ]);
  cleanup.own(etcd);
  await waitBooted(primaryVm, GUEST);
  await askForPasswords();
});
afterAll(() => cleanup.run());

/** From here on nobody may do anything at etcd who doesn't say who he is. */
async function askForPasswords(): Promise<void> {
  for (const [what, request] of [
    ['user/add', { name: 'root', password: 'secret' }],
    ['user/grant', { user: 'root', role: 'root' }],
    ['enable', {}],
  ] as const)
    await fetch(`${etcd.endpoints[0]}/v3/auth/${what}`, { method: 'POST', body: JSON.stringify(request) });
}

/** What both agents and the doctor need to know of this host. */
function host(options: { vm?: TestVm; tls?: string; state?: string } = {}): string[] {
  const { vm = primaryVm, tls = pairedFolders().primary, state = path.join(folder, 'state') } = options;
  return ['--vm', VM_NAME, '--qmp', vm.qmpPath, '--tls', tls, '--state-dir', state];
}

interface Examination {
  code: number;
  of(name: string): Examined;
  named(verdict: Examined['verdict']): string[];
}

/** The same question gets the answer that it has had: the broken VM's faults are seen at one look. */
const asked = new Map<string, Promise<Ended>>();

function ask(...args: string[]): Promise<Ended> {
  const answer = asked.get(args.join(' ')) ?? colo(...args);
  asked.set(args.join(' '), answer);
  return answer;
}

async function doctor(...args: string[]): Promise<Examination> {
  const { code, stdout, stderr } = await ask('doctor', '--json', ...args);
  expect(stderr).toBe('');
  return { code, ...examinationOf(stdout) };
}

function examinationOf(stdout: string): Omit<Examination, 'code'> {
  const { checks } = JSON.parse(stdout) as { checks: Examined[] };
  expect(checks.map(({ name }) => name)).toEqual(CHECKS.map(({ name }) => name));
  return {
    of: (name) => checks.find((check) => check.name === name) as Examined,
    named: (verdict) => checks.filter((check) => check.verdict === verdict).map(({ name }) => name),
  };
}

/** A doctor that answers others, on the standby's host. */
async function listening(
  args: string[],
  env: NodeJS.ProcessEnv = {},
): Promise<{ at: string; child: ChildProcess }> {
  const child = spawn(process.execPath, [MAIN, 'doctor', '--json', '--listen', '127.0.0.1:0', ...args], {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  cleanup.add(() => void child.kill('SIGKILL'));
  let said = '';
  child.stdout.on('data', (chunk: Buffer) => {
    said += chunk;
  });
  await waitFor('what the doctor that listens has found', 60_000, () => said.endsWith('\n'));
  const found = examinationOf(said).of('listen').found;
  return { at: /127\.0\.0\.1:\d+/.exec(found)?.[0] ?? found, child };
}

function fileWith(name: string, content: string, mode = 0o600): string {
  const file = path.join(folder, name);
  writeFileSync(file, content, { mode });
  return file;
}

/** The primary's credentials, changed. */
function credentials(name: string, change: (made: string) => void): string {
  const made = path.join(folder, name);
  cpSync(pairedFolders().primary, made, { recursive: true });
  change(made);
  return made;
}

function certify(made: string, untilDays: number): void {
  const day = (days: number) => Math.floor(Date.now() / 1000) + days * 86_400;
  const { key, certificate } = native.makeCertificate({
    commonName: 'other',
    vms: ['*'],
    validFromS: day(-3),
    validUntilS: day(untilDays),
  });
  writeFileSync(path.join(made, 'key.pem'), key, { mode: 0o600 });
  writeFileSync(path.join(made, 'certificate.pem'), certificate);
}

describe('two hosts that fit', () => {
  test('nothing fails, all is asked, and both VMs are as they were', async () => {
    const { at, child } = await listening(host({ vm: standbyVm, tls: pairedFolders().secondary }));
    const examined = await doctor(...host(), '--peer', at);
    expect(examined.named('fail')).toEqual([]);
    expect(examined.named('not asked')).toEqual(['libvirt', 'listen']);
    expect(examined.code).toBe(0);
    expect(examined.of('match').found).toMatch(/both are pc-q35/);
    expect(examined.of('peer').found).toMatch(/TLSv1\.3.*its doctor answers/);
    expect(examined.of('bandwidth').found).toMatch(/^\d+ Mbit\/s/);
    expect(examined.of('disks').found).toMatch(/^copied: vda \(raw/);
    const ended = once(child, 'exit');
    child.kill('SIGTERM');
    expect(await ended).toEqual([0, null]);
    for (const [vm, status] of [
      [primaryVm, 'running'],
      [standbyVm, 'prelaunch'],
    ] as const) {
      const monitor = await QmpClient.connect(vm.testQmpPath);
      expect(await monitor.execute('query-status')).toMatchObject({ status });
      expect(await monitor.execute('query-fdsets')).toEqual([]);
      monitor.close();
    }
  });

  test('an agent there accepts us, answers no questions, and is none the worse for it', async () => {
    const { agent, listen } = await startSecondary(cleanup, standbyVm);
    const examined = await doctor(...host(), '--peer', listen);
    expect(examined.of('peer')).toMatchObject({
      verdict: 'ok',
      found: expect.stringContaining('no doctor answers'),
    });
    expect(examined.of('latency')).toMatchObject({
      verdict: 'not asked',
      found: expect.stringContaining('doctor --listen'),
    });
    expect(await agent.status()).toMatchObject({ state: 'STARTING' });
    const beside = await doctor(...host({ vm: standbyVm }), '--control', agent.controlPath);
    expect(beside.of('agent')).toMatchObject({
      verdict: 'warn',
      found: expect.stringContaining('secondary'),
    });
    expect(beside.of('qmp').verdict).toBe('not asked');
    await agent.destroy();
  });

  test('for people: within 80 columns, each line with its word, and what to do', async () => {
    const { stdout, code } = await colo('doctor', ...host({ vm: brokenVm }), '--role', 'primary');
    expect(code).toBe(78);
    expect(stdout).toMatch(/^FAIL {2}disks {8}disk hda: it is an IDE disk/m);
    expect(stdout).toMatch(/^ {19}-> use virtio-blk or scsi-hd/m);
    const tooLong = stdout.split('\n').filter((line) => line.length > 80 && !/\S{50}/.test(line));
    expect(tooLong).toEqual([]);
  });
});

interface Fault {
  args: () => string[] | Promise<string[]>;
  check: string;
  text: RegExp;
  /** `primary` refuses it, in the same words. */
  refused?: true;
  code?: number;
}

const FAULTS: Record<string, Fault> = {
  'no such QMP socket': {
    args: () => [...host(), '--qmp', path.join(folder, 'none')],
    check: 'qmp',
    text: /cannot connect to the QMP socket .*none/,
    refused: true,
    code: 69,
  },
  'the QMP socket of a dead QEMU': {
    args: async () => {
      const socket = path.join(folder, 'dead');
      const qemu = await storageDaemon(socket);
      qemu.kill('SIGKILL');
      await qemu.exited;
      return [...host(), '--qmp', socket];
    },
    check: 'qmp',
    text: /Connection refused/,
    refused: true,
    code: 69,
  },
  'a monitor that another client has': {
    args: async () => {
      const other = await QmpClient.connect(standbyVm.qmpPath);
      setTimeout(() => other.close(), 30_000).unref();
      cleanup.add(() => other.close());
      held = other;
      return host({ vm: standbyVm });
    },
    check: 'qmp',
    text: /Another client is connected to this monitor/,
    code: 69,
  },
  'a QEMU without the commands that are needed': {
    args: async () => {
      const socket = path.join(folder, 'lacking');
      await storageDaemon(socket);
      return [...host(), '--qmp', socket, '--role', 'primary'];
    },
    check: 'qemu',
    text: /QEMU: it lacks the QMP command xen-save-devices-state/,
  },
  'a standby that runs': {
    args: () => [...host(), '--role', 'secondary'],
    check: 'run-state',
    text: /is running: a standby must not run/,
  },
  'an IDE disk': {
    args: () => [...host({ vm: brokenVm }), '--role', 'primary'],
    check: 'disks',
    text: /disk hda: it is an IDE disk/,
    refused: true,
  },
  'a NIC whose output passes no filter': {
    args: () => [...host({ vm: brokenVm }), '--role', 'primary'],
    check: 'nics',
    text: /NIC nic0: its output can't be held: it is connected by a hub/,
    refused: true,
  },
  'too little memory for the shadow': {
    args: () => [...host({ vm: brokenVm }), '--role', 'primary'],
    check: 'memory',
    text: /the shadow of \d+ MiB of guest RAM and the buffers need \d+ MiB; .* has \d+ MiB left/,
  },
  'no key': {
    args: () => host({ tls: credentials('no-key', (made) => rmSync(path.join(made, 'key.pem'))) }),
    check: 'keys',
    text: /no-key\/key\.pem.*No such file/,
    refused: true,
  },
  'a key that others can read': {
    args: () =>
      host({ tls: credentials('open-key', (made) => chmodSync(path.join(made, 'key.pem'), 0o644)) }),
    check: 'keys',
    text: /open-key\/key\.pem can be read by others than its owner/,
    refused: true,
  },
  'a certificate that has expired': {
    args: () => host({ tls: credentials('expired', (made) => certify(made, -1)) }),
    check: 'keys',
    text: /our certificate \(every VM\) in .* has expired: \d{4}-/,
  },
  'a certificate for another VM': {
    args: () => {
      const made = path.join(folder, 'another-vm');
      trustCertificate(
        hostCredentials(made, ['other']).folder,
        new X509Certificate(hostCredentials(pairedFolders().secondary, null).certificate),
      );
      return host({ tls: made });
    },
    check: 'keys',
    text: /our certificate is for VM other, not for the VM e2e/,
  },
  'a witness that does not answer': {
    args: () => [...host(), '--witness', 'http://127.0.0.1:1'],
    check: 'witness',
    text: /the witness doesn't answer: 127\.0\.0\.1:1: connect ECONNREFUSED/,
  },
  'a wrong password at the witness': {
    args: () => {
      const password = fileWith('password', 'wrong\n');
      const user = ['--witness-user', 'root', '--witness-password-file', password];
      return [...host(), '--witness', etcd.endpoints.join(','), ...user];
    },
    check: 'witness',
    text: /authentication failed.*this host has to read and write under \/colo-agent\//,
    refused: true,
  },
  'a password that others can read': {
    args: () => {
      const password = fileWith('open-password', 'secret\n');
      chmodSync(password, 0o644);
      const user = ['--witness-user', 'root', '--witness-password-file', password];
      return [...host(), '--witness', etcd.endpoints.join(','), ...user];
    },
    check: 'witness',
    text: /open-password holds a password and others may use it/,
    refused: true,
  },
  'a state of this host under another name': {
    args: () => {
      const state = path.join(folder, 'renamed');
      mkdirSync(state);
      const content = { format: 1, vm: VM_NAME, generation: 3, won: 3, node: 'north' };
      writeFileSync(path.join(state, `${VM_NAME}.generation`), JSON.stringify(content));
      return [...host({ state }), '--node', 'south'];
    },
    check: 'state-dir',
    text: /this host takes part in e2e as north .* and is called south now/,
    refused: true,
  },
  'no watchdog': {
    args: () => [...host(), '--watchdog', '/dev/no-watchdog'],
    check: 'watchdog',
    text: /opening the watchdog \/dev\/no-watchdog: no such file or directory/,
  },
  'a peer that does not listen': {
    args: () => [...host(), '--peer', '127.0.0.1:1'],
    check: 'peer',
    text: /can't reach the standby at 127\.0\.0\.1:1: .*Connection refused/,
    code: 69,
  },
  'a peer that is not paired with this host': {
    args: async () => {
      const { at } = await listening(host({ vm: standbyVm, tls: pairedFolders().secondary }));
      return [...host({ tls: credentials('stranger', (made) => certify(made, 1)) }), '--peer', at];
    },
    check: 'peer',
    text: /doesn't trust our certificate/,
    code: 69,
  },
  'another machine on the other host': {
    args: async () => {
      const { at } = await listening(host({ vm: brokenVm, tls: pairedFolders().secondary }));
      return [...host(), '--peer', at];
    },
    check: 'match',
    text: /machine type: primary pc-q35-.*, secondary pc-i440fx-/,
  },
  'clocks that are apart': {
    args: async () => {
      const wall = await WallClock.create(folder, 'south');
      wall.step(-120);
      const { at } = await listening(
        host({ vm: standbyVm, tls: pairedFolders().secondary }),
        wall.environment,
      );
      return [...host(), '--peer', at];
    },
    check: 'clock',
    text: /the peer's is 1[12]\d\.\d s behind/,
  },
};

/** Whoever sits at the standby's monitor in one of the tests. */
let held: QmpClient | null = null;

/** Speaks QMP, and is no QEMU that runs a VM. */
async function storageDaemon(socket: string): Promise<Child> {
  const monitor = `socket,id=qmp0,path=${socket},server=on,wait=off`;
  const child = await Child.start(
    ['qemu-storage-daemon', '--chardev', monitor, '--monitor', 'chardev=qmp0'],
    {
      stderrPath: `${socket}.stderr`,
    },
  );
  cleanup.add(() => child.stop());
  await waitFor('a monitor of the storage daemon', 30_000, () =>
    QmpClient.connect(socket).then(
      (client) => {
        client.close();
        return true;
      },
      () => false,
    ),
  );
  return child;
}

describe('a set-up with', () => {
  test.each(Object.entries(FAULTS))('%s', async (_, { args, check, text, refused, code = 78 }) => {
    const given = await args();
    try {
      const examined = await doctor(...given);
      const { found, remedy } = examined.of(check);
      expect(found).toMatch(text);
      expect(examined.named('fail')).toContain(check);
      expect(remedy).not.toBe('');
      expect(examined.code).toBe(code);
      // Only what is broken is told: of the broken VM these three.
      const allowed = given.includes(brokenVm.qmpPath) ? ['disks', 'nics', 'memory'] : [check];
      if (check !== 'qemu' && check !== 'match')
        expect(examined.named('fail').filter((name) => !allowed.includes(name))).toEqual([]);
      if (refused)
        await expectRefused(
          given.filter((arg) => arg !== '--role' && arg !== 'primary'),
          found,
          check,
        );
    } finally {
      held?.close();
      held = null;
    }
  });
});

async function expectRefused(given: string[], found: string, check: string): Promise<void> {
  const ended = await ask(
    'primary',
    ...given,
    '--peer',
    '127.0.0.1:1',
    '--control',
    path.join(folder, 'control'),
  );
  expect(ended.code).toBeGreaterThan(0);
  expect(ended.stderr).toContain(found.split('; ')[0]);
  expect(ended.stderr).toMatch(new RegExp(`\\(doctor: .*\`${check}\`.* tells? more\\)`, 's'));
}
