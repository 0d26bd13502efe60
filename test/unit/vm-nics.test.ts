import { describe, expect, it } from 'vitest';
import { hasOption, optionValues, parseKeyValues } from '../../src/vm/command-line.ts';
import { findNics, isUngated, parseNetwork } from '../../src/vm/nics.ts';
import { FakeQmp, fakeProcess, type ProcFiles } from './vm-fakes.ts';

// Recorded from QEMU 7.2.22 with every kind of line.
const NETWORK = `hub 0\r
 \\ hub0port1: #net215: index=0,type=user,net=10.0.2.0,restrict=off\r
 \\ hub0port0: rtl8139.0: index=0,type=nic,model=rtl8139,macaddr=52:54:00:12:34:57\r
unused: index=0,type=user,net=10.0.2.0,restrict=off\r
virtio-net-pci.0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56\r
 \\ t0: index=0,type=tap,ifname=tap0,script=no,downscript=no\r
virtio-net-pci.1: index=1,type=nic,\r
 \\ t0: index=1,type=tap,ifname=tap0,script=no,downscript=no\r
net0: index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:58\r
 \\ n0: index=0,type=user,net=10.0.2.0,restrict=off\r
filters:\r
  - colo-f: type=filter-redirector,vnet_hdr_support=true,indev=x,outdev=,position=tail,status=on,insert=behind,netdev=n0,queue=rx\r
e1000.1: index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:59\r
`;

describe('parseNetwork', () => {
  it('finds NICs and the peers of all their queues', () => {
    expect(parseNetwork(NETWORK)).toEqual([
      {
        id: 'rtl8139.0',
        model: 'rtl8139',
        mac: '52:54:00:12:34:57',
        peers: [{ id: 'hub0port0', type: 'hubport' }],
      },
      {
        id: 'virtio-net-pci.0',
        model: 'virtio-net-pci',
        mac: '52:54:00:12:34:56',
        peers: [
          { id: 't0', type: 'tap' },
          { id: 't0', type: 'tap' },
        ],
      },
      { id: 'net0', model: 'e1000', mac: '52:54:00:12:34:58', peers: [{ id: 'n0', type: 'user' }] },
      { id: 'e1000.1', model: 'e1000', mac: '52:54:00:12:34:59', peers: [] },
    ]);
  });

  it("knows a hub's port by whatever name it was given", () => {
    const named = ' \\ lan: net0: index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:58\r\n';
    expect(parseNetwork(`hub 0\r\n${named}`)).toEqual([
      {
        id: 'net0',
        model: 'e1000',
        mac: '52:54:00:12:34:58',
        peers: [{ id: 'lan', type: 'hubport' }],
      },
    ]);
  });

  it('refuses a NIC line that it does not understand', () => {
    expect(() => parseNetwork('net0: index=0,type=nic,something=else\r\n')).toThrow(/cannot understand/);
  });

  it('finds nothing in nothing', () => {
    expect(parseNetwork('')).toEqual([]);
  });
});

const tapVm = (type = 'tap') => ({
  'info network': `net0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:99\r\n \\ n0: index=0,type=${type},x=y\r\n`,
  'qom-list': ({ path }: Record<string, unknown>) => {
    if (path === '/machine/peripheral') return [{ name: 'net0', type: 'child<virtio-net-pci>' }];
    if (path !== '/machine/peripheral/net0') return [];
    return [
      { name: 'netdev', type: 'str' },
      { name: 'mac', type: 'str' },
    ];
  },
  'qom-get': ({ property }: Record<string, unknown>) => (property === 'netdev' ? 'n0' : '52:54:00:00:00:01'),
});

async function reason(files: ProcFiles, type?: string): Promise<string | null | undefined> {
  const [nic] = await findNics(new FakeQmp(tapVm(type)).client, 1, fakeProcess(files));
  return nic?.ungateable;
}

describe('findNics', () => {
  it('takes the MAC address that the NIC was given, not the one the guest has set', async () => {
    const [nic] = await findNics(new FakeQmp(tapVm()).client, 1, fakeProcess({}));
    expect(nic).toEqual({
      id: 'net0',
      model: 'virtio-net-pci',
      mac: '52:54:00:00:00:01',
      netdev: { id: 'n0', type: 'tap', queues: 1 },
      ungateable: null,
    });
  });

  const vhostOpen = ['/dev/null', '/dev/vhost-net'];

  it.each([
    ['vhost=on', { commandLine: ['qemu', '-netdev', 'tap,id=n0,vhost=on'], openFiles: vhostOpen }],
    ['vhostforce', { commandLine: ['qemu', '-netdev', 'tap,id=n0,vhostforce'], openFiles: vhostOpen }],
    [
      'libvirt’s JSON',
      { commandLine: ['qemu', '-netdev', '{"type":"tap","vhost":true,"id":"n0"}'], openFiles: vhostOpen },
    ],
    [
      'a hot-plugged tap beside vhost',
      { commandLine: ['qemu', '-netdev', 'tap,id=other'], openFiles: vhostOpen },
    ],
  ])('says that the kernel moves the frames: %s', async (_, files) => {
    expect(await reason(files)).toMatch(/vhost/);
  });

  it.each([
    ['vhost is on but not in use', { commandLine: ['qemu', '-netdev', 'tap,id=n0,vhost=on'] }],
    [
      'vhost is off beside another that uses it',
      { commandLine: ['qemu', '-netdev', 'tap,id=n0'], openFiles: vhostOpen },
    ],
    [
      'switched off in JSON',
      { commandLine: ['qemu', '-netdev', '{"type":"tap","vhost":false,"id":"n0"}'], openFiles: vhostOpen },
    ],
  ])('gates a tap when %s', async (_, files) => {
    expect(await reason(files)).toBeNull();
  });

  it.each([
    ['vhost-user', /another process/],
    ['vhost-vdpa', /hardware/],
  ])('refuses %s', async (type, text) => {
    expect(await reason({}, type)).toMatch(text);
  });

  it('refuses several queues, and a NIC on a hub', async () => {
    const qmp = new FakeQmp({ 'info network': NETWORK, 'qom-list': [] });
    const nics = await findNics(qmp.client, 1, fakeProcess({}));
    const reasons = Object.fromEntries(nics.map(({ id, ungateable }) => [id, ungateable]));
    expect(reasons).toMatchObject({ net0: null, 'e1000.1': null });
    expect(reasons['virtio-net-pci.0']).toMatch(/several queues \(it has 2\)/);
    expect(reasons['rtl8139.0']).toMatch(/hub/);
  });

  it('is accepted ungated by id or by MAC address', async () => {
    const [nic] = await findNics(new FakeQmp(tapVm()).client, 1, fakeProcess({}));
    if (!nic) throw new Error('no NIC found');
    expect(isUngated({ ...nic, mac: '52:54:00:00:00:aB' }, ['52:54:00:00:00:Ab'])).toBe(true);
    expect(isUngated(nic, ['net0'])).toBe(true);
    expect(isUngated(nic, ['n0', 'net'])).toBe(false);
  });
});

describe("QEMU's command line", () => {
  const words = ['qemu', '-netdev', 'a', '--netdev', 'b', '-no-shutdown', '-netdev'];

  it('gives the values of an option', () => {
    expect(optionValues(words, 'netdev')).toEqual(['a', 'b']);
    expect(optionValues(words, 'device')).toEqual([]);
    expect(hasOption(words, 'no-shutdown')).toBe(true);
    expect(hasOption(words, 'no-reboot')).toBe(false);
  });

  it.each([
    ['tap,id=n0,vhost=on', { type: 'tap', id: 'n0', vhost: 'on' }],
    ['type=tap,id=a,,b', { type: 'tap', id: 'a,b' }],
    ['tap,vhostforce', { type: 'tap', vhostforce: 'on' }],
    ['id=a=b', { id: 'a=b' }],
    ['', {}],
    ['{"type":"tap","vhost":false,"fd":33}', { type: 'tap', vhost: 'off', fd: '33' }],
  ])('is taken apart: %s', (value, expected) => {
    expect(Object.fromEntries(parseKeyValues(value, 'type'))).toEqual(expected);
  });
});
