/** The standby's command line from the primary's, for what people and libvirt write; and everything that is refused. */
import { describe, expect, test } from 'vitest';
import { OptionValue } from '../../src/standby/option-value.ts';
import { planStandby } from '../../src/standby/translate.ts';
import type { PrimaryDrive, PrimaryFacts, StandbyChoices } from '../../src/standby/translation.ts';
import type { PreflightError } from '../../src/vm/preflight.ts';

const QMP = '/run/vm/qmp';

function drive(members: Partial<PrimaryDrive>): PrimaryDrive {
  return {
    id: 'vda',
    drive: '',
    node: '#block1',
    readOnly: false,
    sizeBytes: 1 << 20,
    flash: false,
    ...members,
  };
}

interface Given {
  facts?: Partial<PrimaryFacts>;
  choices?: Partial<StandbyChoices>;
}

function plan(words: string[], { facts, choices }: Given = {}) {
  const devices = words.flatMap((word, index) => {
    const id = words[index - 1] === '-device' ? new OptionValue(word, 'driver').get('id') : null;
    return id === null ? [] : [id];
  });
  return planStandby(
    {
      commandLine: ['/usr/bin/qemu-system-x86_64', ...words],
      workingFolder: '/root',
      qmpPath: QMP,
      machine: 'pc-q35-7.2',
      drives: [],
      devices,
      ...facts,
    },
    {
      vm: 'web1',
      folder: '/sb',
      qmpPath: null,
      disks: new Map(),
      taps: new Map(),
      vnc: null,
      emulator: null,
      ...choices,
    },
  );
}

/** Without the binary, and what every standby gets in addition. */
function words(given: string[], options?: Given): string[] {
  return plan(
    ['-machine', 'q35', '-qmp', `unix:${QMP},server=on,wait=off`, '-S', ...given],
    options,
  ).command.slice(6);
}

function refusals(given: string[], options?: Given): string[] {
  try {
    plan(given, options);
  } catch (error) {
    return (error as PreflightError).problems.map(
      ({ where, what, remedy }) => `${where}: ${what} (${remedy})`,
    );
  }
  return [];
}

describe('the machine', () => {
  test('gets its version, a monitor for the agent, and -S; what belongs to the start is left out', () => {
    const given = [
      '-M',
      'q35,accel=tcg',
      '-m',
      '64',
      '-daemonize',
      '-incoming',
      'tcp:0:4444',
      '-snapshot',
      '-loadvm',
      's1',
    ];
    expect(plan(given).command).toEqual([
      ...['/usr/bin/qemu-system-x86_64', '-M', 'pc-q35-7.2,accel=tcg', '-m', '64'],
      ...['-qmp', 'unix:/sb/qmp,server=on,wait=off', '-S'],
    ]);
  });

  test('is named where the command line had the default one', () => {
    expect(plan(['-accel', 'kvm']).command.slice(1, 5)).toEqual(['-machine', 'pc-q35-7.2', '-accel', 'kvm']);
    expect(plan(['-machine', 'accel=kvm']).command.slice(1, 3)).toEqual(['-machine', 'pc-q35-7.2']);
  });

  test('takes two dashes as one, and -S once', () => {
    expect(
      plan(['--machine', 'pc', '-S', '--enable-kvm']).command.filter((word) => word === '-S'),
    ).toHaveLength(1);
  });

  test('needs the files that it is made of', () => {
    const given = [
      '-kernel',
      'vmlinuz',
      '-fw_cfg',
      'name=opt/a,file=/x/a',
      '-smbios',
      'type=1,serial=a,,b',
      '-bios',
      'seabios.bin',
    ];
    const { command, needed } = plan(given);
    expect(needed.map(({ path }) => path)).toEqual(['/root/vmlinuz', '/x/a', '/usr/bin/qemu-system-x86_64']);
    expect(command).toEqual(expect.arrayContaining(['/root/vmlinuz', 'type=1,serial=a,,b', 'seabios.bin']));
  });

  test('what was plugged in or out since the start is named', () => {
    const given = ['-device', 'virtio-rng-pci,id=rng0'];
    expect(refusals(given, { facts: { devices: ['rng0', 'net9'] } })).toEqual([
      expect.stringContaining("device net9: it was plugged in since QEMU's start"),
    ]);
    expect(refusals(given, { facts: { devices: [] } })).toEqual([
      expect.stringContaining("device rng0: it was plugged out since QEMU's start"),
    ]);
  });

  test.each([
    ['-hda disk.img', '-hda disk.img:'],
    ['disk.img', 'disk.img: it stands for -hda'],
    ['-cdrom /x.iso', '-cdrom /x.iso:'],
    ['-readconfig vm.cfg', '-readconfig vm.cfg:'],
    ['-virtfs local,path=/x', '-virtfs local,path=/x:'],
    ['-tpmdev emulator,id=t,chardev=c', '-tpmdev emulator'],
    ['-brand-new-option 1', "-brand-new-option: colo-agent doesn't know this option"],
    [
      '-device vfio-pci,host=01:00.0',
      '-device vfio-pci,host=01:00.0: it is a device that works outside QEMU',
    ],
    ['-device usb-host,hostbus=1', '-device usb-host,hostbus=1: it is a USB device of this host'],
    ['-net nic', '-net nic: a hub'],
  ])('%s is refused by name', (text, start) => {
    const found = refusals(text.split(' '));
    expect(found).toHaveLength(1);
    expect(found[0]).toContain(start);
    expect(found[0]).toMatch(/\(.+\)$/);
  });

  test('all that stands against it is told at once', () => {
    expect(refusals(['-hda', 'a', '-device', 'usb-host', '-net', 'nic'])).toHaveLength(3);
  });
});

describe('-drive', () => {
  const vda = drive({ drive: 'd0' });

  test('becomes a raw file; how the device reaches it stays', () => {
    const given =
      'file=/img/a,,b.qcow2,if=none,id=d0,format=qcow2,cache=none,aio=native,discard=unmap,l2-cache-size=1M,file.locking=off,throttling.bps-total=1';
    const { command, disks, differences } = plan(['-drive', given], { facts: { drives: [vda] } });
    expect(command).toContain(
      'file=/sb/vda.raw,if=none,id=d0,format=raw,cache=none,aio=native,discard=unmap,file.locking=off,throttling.bps-total=1',
    );
    expect(disks).toEqual([{ id: 'vda', file: '/sb/vda.raw', sizeBytes: 1 << 20 }]);
    expect(differences).toContainEqual(
      expect.objectContaining({ option: '--disk vda=FILE', standby: '/sb/vda.raw' }),
    );
  });

  test('goes where it is told; what is told of no disk is refused', () => {
    const facts = { drives: [vda] };
    const given = ['-drive', 'if=none,id=d0,file=a'];
    const disks = new Map([['vda', '/dev/vg/web1']]);
    expect(words(given, { facts, choices: { disks } })).toContain(
      'if=none,id=d0,file=/dev/vg/web1,format=raw',
    );
    expect(refusals(given, { facts, choices: { disks: new Map([['vdb', '/x']]) } })).toEqual([
      '--disk vdb: the VM has no such disk (its disks: vda)',
    ]);
  });

  test('without an id is told by its interface', () => {
    const drives = [
      drive({ id: 'virtio0', drive: 'virtio0' }),
      drive({ id: 'pflash1', drive: 'pflash1', flash: true }),
    ];
    const given = ['-drive', 'if=virtio,file=a', '-drive', 'if=pflash,unit=1,file=VARS.fd,format=raw'];
    expect(words(given, { facts: { drives } })).toEqual([
      ...['-drive', 'if=virtio,file=/sb/virtio0.raw,format=raw'],
      ...['-drive', 'if=pflash,unit=1,file=/sb/pflash1.raw,format=raw'],
    ]);
  });

  test('that can only be read stays, and must be there; an empty drive needs nothing', () => {
    const drives = [drive({ id: 'cd', drive: 'd1', readOnly: true })];
    const given = ['-drive', 'if=none,id=d1,media=cdrom,file=x.iso', '-drive', 'if=none,id=d2,media=cdrom'];
    const { command, needed, disks } = plan(given, { facts: { drives } });
    expect(command).toContain('if=none,id=d1,media=cdrom,file=/root/x.iso');
    expect(needed[0]).toEqual({ what: 'disk cd, read-only', path: '/root/x.iso' });
    expect(disks).toEqual([]);
  });

  test.each([
    ['if=none,id=d0,file=a,encrypt.key-secret=s', /it is encrypted.*--disk vda=FILE/],
    ['if=none,id=d0,file=a,some-new-key=1', /'some-new-key' can't be taken over/],
    ['if=none,id=other,file=a', /QEMU has no such disk now/],
  ])('%s is refused', (text, expected) => {
    expect(refusals(['-drive', text], { facts: { drives: [vda] } })[0]).toMatch(expected);
  });

  test('an encrypted one is taken where somebody has said where its content may lie', () => {
    const given = ['-drive', 'if=none,id=d0,file=a,encrypt.key-secret=s'];
    const choices = { disks: new Map([['vda', '/dev/mapper/x']]) };
    expect(words(given, { facts: { drives: [vda] }, choices })).toContain(
      'if=none,id=d0,file=/dev/mapper/x,format=raw',
    );
  });

  test('a disk that the command line has not is named', () => {
    expect(refusals([], { facts: { drives: [vda] } })).toEqual([
      expect.stringContaining("disk vda: it isn't in QEMU's command line"),
    ]);
  });
});

describe('-blockdev', () => {
  const storage = (name: string, file: string) =>
    JSON.stringify({
      driver: 'file',
      filename: file,
      'node-name': name,
      cache: { direct: true },
      aio: 'native',
      'auto-read-only': true,
    });
  const format = (name: string, over: string, more: object = {}) =>
    JSON.stringify({
      'node-name': name,
      'read-only': false,
      driver: 'qcow2',
      file: over,
      discard: 'unmap',
      ...more,
    });

  test("libvirt's chain of images becomes one raw file under the same names", () => {
    const given = [
      ...[
        '-blockdev',
        storage('libvirt-2-storage', '/base.qcow2'),
        '-blockdev',
        format('libvirt-2-format', 'libvirt-2-storage', { 'read-only': true }),
      ],
      ...[
        '-blockdev',
        storage('libvirt-1-storage', '/top.qcow2'),
        '-blockdev',
        format('libvirt-1-format', 'libvirt-1-storage', { backing: 'libvirt-2-format' }),
      ],
    ];
    const found = words(given, { facts: { drives: [drive({ node: 'libvirt-1-format' })] } });
    expect(found).toEqual(['-blockdev', expect.any(String), '-blockdev', expect.any(String)]);
    expect(JSON.parse(found[1] ?? '')).toEqual({
      driver: 'file',
      'node-name': 'libvirt-1-storage',
      filename: '/sb/vda.raw',
      aio: 'native',
      cache: { direct: true },
    });
    expect(JSON.parse(found[3] ?? '')).toEqual({
      driver: 'raw',
      'node-name': 'libvirt-1-format',
      'read-only': false,
      file: 'libvirt-1-storage',
      discard: 'unmap',
    });
  });

  test('a node with its file in it, in the older syntax', () => {
    const given = [
      '-blockdev',
      'driver=qcow2,node-name=n0,file.driver=file,file.filename=/a,file.aio=io_uring,cache.direct=on',
    ];
    const found = words(given, { facts: { drives: [drive({ node: 'n0' })] } });
    expect(JSON.parse(found[1] ?? '')).toMatchObject({
      'node-name': 'storage-vda',
      aio: 'io_uring',
      cache: { direct: true },
    });
    expect(JSON.parse(found[3] ?? '')).toMatchObject({
      driver: 'raw',
      'node-name': 'n0',
      file: 'storage-vda',
    });
  });

  test('of a disk that can only be read stays', () => {
    const given = [
      '-blockdev',
      storage('s', '/x.iso'),
      '-blockdev',
      '{"driver":"raw","node-name":"f","file":"s","read-only":true}',
    ];
    const { command, needed } = plan(given, { facts: { drives: [drive({ node: 'f', readOnly: true })] } });
    expect(command).toEqual(expect.arrayContaining(given));
    expect(needed[0]?.path).toBe('/x.iso');
  });

  test.each([
    [['{"driver":"throttle","node-name":"f","file":"s"}'], /block driver 'throttle' can't be taken over/],
    [['{"driver":"luks","node-name":"f","file":"s","key-secret":"k"}'], /it is encrypted/],
    [['{"driver":"raw","node-name":"unused","file":"s"}'], /no disk of the VM uses node unused now/],
  ])('%s is refused', (given, expected) => {
    const facts = { drives: [drive({ node: 'f' })] };
    expect(
      refusals(
        given.flatMap((text) => ['-blockdev', text]),
        { facts },
      ).join(),
    ).toMatch(expected);
  });
});

describe('netdevs', () => {
  test("libvirt's tap is a descriptor: its interface must be said, and vhost stays what it is", () => {
    const given = ['-netdev', '{"type":"tap","fd":"28","vhost":true,"vhostfd":"30","id":"hostnet0"}'];
    expect(refusals(given)).toEqual([expect.stringContaining('--tap hostnet0=IFNAME')]);
    const taps = new Map([['hostnet0', 'vnet7']]);
    expect(JSON.parse(words(given, { choices: { taps } })[1] ?? '')).toEqual({
      ...{ type: 'tap', vhost: true, id: 'hostnet0', script: 'no', downscript: 'no', ifname: 'vnet7' },
    });
  });

  test('a tap with a name keeps it, unless another is said; several queues keep their number', () => {
    const given = ['-netdev', 'tap,id=n0,ifname=tap0,script=no', '-netdev', 'tap,fds=3:4,id=n1,vhost=off'];
    const taps = new Map([['n1', 'tap9']]);
    expect(words(given, { choices: { taps } })).toEqual([
      ...['-netdev', 'tap,id=n0,ifname=tap0,script=no'],
      ...['-netdev', 'tap,id=n1,vhost=off,queues=2,script=no,downscript=no,ifname=tap9'],
    ]);
    expect(refusals(['-netdev', 'tap,id=n0'])).toEqual([
      expect.stringContaining('QEMU chose the name of its tap'),
    ]);
    expect(refusals(['-netdev', 'user,id=n0'], { choices: { taps } })).toEqual([
      '--tap n1: the VM has no tap of this name (its taps: none)',
    ]);
  });

  test('forwarded ports, all of them, stay and are named', () => {
    const given = ['-nic', 'user,hostfwd=tcp::22-:22,hostfwd=tcp::80-:80,model=virtio'];
    expect(words(given)).toEqual(given);
    expect(plan(given).differences).toContainEqual(
      expect.objectContaining({ what: 'netdev , forwarded ports' }),
    );
  });

  test.each(['vhost-user,id=n,chardev=c', 'vhost-vdpa,id=n', 'socket,id=n,fd=3', 'vde,id=n'])(
    '%s is refused',
    (text) => {
      expect(refusals(['-netdev', text])[0]).toContain(`-netdev ${text}: `);
    },
  );
});

describe('sockets, logs, displays', () => {
  test('the agent gets its monitor, on whichever option it stands', () => {
    const chardev = ['-chardev', `socket,id=m,path=${QMP},server=on`, '-mon', 'chardev=m,mode=control'];
    expect(plan(['-machine', 'pc', ...chardev]).command.slice(3)).toEqual([
      ...['-chardev', 'socket,id=m,path=/sb/qmp,server=on,wait=off', '-mon', 'chardev=m,mode=control', '-S'],
    ]);
    const { command, qmpPath } = plan(['-qmp', 'unix:qmp,server,nowait'], {
      facts: { qmpPath: '/root/qmp' },
      choices: { qmpPath: '/run/other' },
    });
    expect(command).toContain('unix:/run/other,server,wait=off');
    expect(qmpPath).toBe('/run/other');
  });

  test("libvirt's own monitor goes, its other descriptors become files and sockets", () => {
    const given = [
      ...[
        '-chardev',
        'socket,id=charmonitor,fd=26,server=on,wait=off',
        '-mon',
        'chardev=charmonitor,id=monitor,mode=control',
      ],
      ...[
        '-add-fd',
        'set=0,fd=24,opaque=serial0-source',
        '-chardev',
        'file,id=charserial0,path=/dev/fdset/0,append=on',
      ],
      ...['-chardev', 'socket,id=charchannel0,fd=25,server=on,wait=off'],
      ...['-device', '{"driver":"virtserialport","chardev":"charchannel0","id":"channel0"}'],
      ...['-object', '{"qom-type":"secret","id":"masterKey0","format":"raw","file":"/x/master-key.aes"}'],
    ];
    expect(words(given)).toEqual([
      ...['-chardev', 'file,id=charserial0,path=/sb/charserial0.log,append=on'],
      ...['-chardev', 'socket,id=charchannel0,server=on,wait=off,path=/sb/charchannel0.sock'],
      ...['-device', '{"driver":"virtserialport","chardev":"charchannel0","id":"channel0"}'],
    ]);
  });

  test('the same name twice becomes two files', () => {
    const given = [
      '-serial',
      'file:/a/log',
      '-serial',
      'file:/b/log',
      '-D',
      '/c/log',
      '-pidfile',
      '/run/x.pid',
    ];
    expect(words(given)).toEqual([
      ...['-serial', 'file:/sb/log', '-serial', 'file:/sb/2-log', '-D', '/sb/3-log', '-pidfile', '/sb/x.pid'],
    ]);
  });

  test.each([
    ['-serial mon:stdio', '-serial mon:stdio'],
    ['-monitor unix:/m,server', '-monitor unix:/sb/m,server,wait=off'],
    ['-serial unix:/m', '-serial unix:/m'],
    ['-serial tcp::4444,server=on', '-serial tcp::4444,server=on,wait=off'],
    ['-vnc unix:/v,password=on', '-vnc unix:/sb/v,password=on'],
    ['-vnc :3,to=9', '-vnc :3,to=9'],
    ['-display gtk,gl=on', '-display none'],
    ['-display vnc=:3', '-display vnc=:3'],
    ['-spice port=5900,addr=127.0.0.1', '-spice port=5900,addr=127.0.0.1'],
    ['-spice unix=on,addr=/s.sock', '-spice unix=on,addr=/sb/s.sock'],
    ['-chardev pty,id=p', '-chardev pty,id=p'],
    [
      '-object memory-backend-file,id=ram,size=1G,mem-path=/dev/hugepages/libvirt/qemu/1-web1',
      '-object memory-backend-file,id=ram,size=1G,mem-path=/dev/hugepages',
    ],
    [
      '-object memory-backend-file,id=ram,size=1G,mem-path=/dev/shm/web1',
      '-object memory-backend-file,id=ram,size=1G,mem-path=/dev/shm/colo-standby-web1/ram',
    ],
    ['-object memory-backend-memfd,id=ram,size=1G', '-object memory-backend-memfd,id=ram,size=1G'],
  ])('%s becomes %s', (given, expected) => {
    expect(words(given.split(' ')).join(' ')).toBe(expected);
  });

  test('-vnc as told', () => {
    expect(words(['-vnc', ':3,password=on'], { choices: { vnc: '127.0.0.1:7' } })[1]).toBe(
      '127.0.0.1:7,password=on',
    );
  });

  test.each([
    ['-chardev socket,id=c,fd=7', 'its socket was connected by whoever started QEMU'],
    ['-chardev no-such,id=c', "what 'no-such' leads to"],
    ['-serial no-such:thing', "what 'no-such' leads to"],
    ['-object memory-backend-memfd,id=ram,fd=7', 'it uses a descriptor'],
    ['-drive if=none,id=d0,file=/dev/fdset/1', 'it uses a descriptor'],
  ])('%s is refused', (text, what) => {
    const drives = text.includes('d0') ? [drive({ drive: 'd0', readOnly: true })] : [];
    expect(refusals(text.split(' '), { facts: { drives } }).join()).toContain(what);
  });

  test("a secret that libvirt's key opens is refused", () => {
    const key = '{"qom-type":"secret","id":"masterKey0","format":"raw","file":"/x/master-key.aes"}';
    const other = '{"qom-type":"secret","id":"s","keyid":"masterKey0","data":"x"}';
    expect(refusals(['-object', key, '-object', other])[0]).toContain(
      'the key that libvirt made for this start',
    );
  });
});
