/** Domains of libvirt: their XML and their monitors. The rest is in test/e2e/libvirt.test.ts, with a real libvirtd. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { findQmpSocket, monitorPath, monitorXml, parseDomain } from '../../src/libvirt/domain.ts';
import { encoded, parseXml } from '../../src/libvirt/xml.ts';
import { isLibvirts, monitorSockets } from '../../src/vm/monitors.ts';

/** As libvirt 9 writes it, shortened. */
const XML = `<?xml version='1.0'?>
<!-- managed by libvirt: use 'virsh edit' -->
<domain type='kvm' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web &amp; db</name>
  <uuid>6c4dd1a9-0c1c-4d5c-9d3c-2f4f4d8a0b11</uuid>
  <metadata><app:name xmlns:app="urn:x">not &lt;this&gt;</app:name></metadata>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator><name>nor this</name></devices>
  <qemu:commandline>
    <qemu:arg value='-qmp'/>
    <qemu:arg value="unix:/run/it&apos;s.qmp,server=on,wait=off"/>
  </qemu:commandline>
</domain>
`;

describe("a domain's XML", () => {
  test('says its name, type, UUID, and the arguments that it adds', () => {
    expect(parseDomain(XML)).toEqual({
      name: 'web & db',
      type: 'kvm',
      uuid: '6c4dd1a9-0c1c-4d5c-9d3c-2f4f4d8a0b11',
      extraArguments: ['-qmp', "unix:/run/it's.qmp,server=on,wait=off"],
    });
  });

  test.each([
    ['cut off', XML.slice(0, -12)],
    ['closed by another name', '<domain><name>x</nam></domain>'],
    ['two roots', '<domain/><domain/>'],
    ['another element', '<network><name>x</name></network>'],
    ['no XML', 'error: nothing <here'],
    ['empty', ''],
  ])('that is none, %s, is refused', (_, text) => {
    expect(() => parseDomain(text)).toThrow(/^virsh dumpxml gave no domain: ./);
  });

  test('attributes and text come back as they were written', () => {
    const text = `<>&'"é\u{1F600}`;
    const root = parseXml(`<a b='${encoded(text)}'>${encoded(text)}&#65;&#x42;</a>`);
    expect(root).toMatchObject({ attributes: { b: text }, text: `${text}AB` });
  });
});

describe('the monitors of a QEMU', () => {
  const LIBVIRTS = [
    '-chardev',
    'socket,id=charmonitor,path=/run/libvirt.monitor,server=on,wait=off',
    '-mon',
    'chardev=charmonitor,id=monitor,mode=control',
  ];

  test("are its QMP sockets, but not libvirt's own", () => {
    expect(isLibvirts(['qemu', ...LIBVIRTS])).toBe(true);
    expect(monitorSockets(['qemu', ...LIBVIRTS])).toEqual([]);
    const own = ['-chardev', 'socket,id=c,path=/run/b.qmp,server=on', '-mon', 'chardev=c,mode=control'];
    const commandLine = ['qemu', ...LIBVIRTS, '-qmp', 'unix:/run/a,,b.qmp,server=on,wait=off', ...own];
    expect(monitorSockets(commandLine)).toEqual(['/run/a,b.qmp', '/run/b.qmp']);
  });

  test.each([
    [
      'a monitor for people',
      ['-chardev', 'socket,id=c,path=/m,server=on', '-mon', 'chardev=c,mode=readline'],
    ],
    ['one that connects to somebody', ['-qmp', 'unix:/m,server=off']],
    ['a port', ['-qmp', 'tcp:127.0.0.1:4444,server=on']],
    ['a serial line', ['-chardev', 'socket,id=c,path=/m,server=on', '-serial', 'chardev:c']],
  ])('%s is none of them', (_, words) => {
    expect(isLibvirts(['qemu', ...words])).toBe(false);
    expect(monitorSockets(['qemu', ...words])).toEqual([]);
  });

  test('the XML that is told gives a monitor where it says', () => {
    const name = "a,b'c";
    const told = monitorXml(name).replace('<domain ... ', '<domain ').replace('...', '');
    expect(monitorSockets(parseDomain(told).extraArguments)).toEqual([monitorPath(name)]);
  });
});

describe('where there is no virsh', () => {
  const folder = mkdtempSync(path.join(tmpdir(), 'colo-no-virsh-'));
  afterEach(() => {
    vi.unstubAllEnvs();
    rmSync(folder, { recursive: true });
  });

  test('it is said what to install', async () => {
    vi.stubEnv('PATH', folder);
    await expect(findQmpSocket('web1')).rejects.toThrow(/Debian: libvirt-clients, Fedora: libvirt-client/);
  });
});
