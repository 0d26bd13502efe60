/** Disks of test VMs: their images, and how QEMU and the guest see them. */
import { existsSync, truncateSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { run } from './child.ts';

export interface DiskOptions {
  /** The device's id; both VMs of a protection need the same. */
  id: string;
  sizeMiB: number;
  /** Default raw. */
  format?: 'raw' | 'qcow2';
  /** As in QEMU's -drive; default writeback. */
  cache?: 'none' | 'writeback' | 'writethrough' | 'directsync';
  /** Default threads; native needs a cache mode that goes past the page cache. */
  aio?: 'threads' | 'native' | 'io_uring';
  /** Default virtio-blk; ide needs the machine type pc. */
  bus?: 'virtio-blk' | 'virtio-scsi' | 'ide';
  /** Opened without a lock, so that two VMs may have the same image open. */
  shared?: boolean;
  /** Defined by -blockdev with names for its nodes, as libvirt does it, instead of by -drive. */
  namedNodes?: boolean;
  /** The device's requests are served by a thread of its own (virtio-blk only). */
  iothread?: boolean;
  readOnly?: boolean;
  /** What a new image holds: nothing (the default) or an empty ext4. */
  content?: 'ext4';
  /** Where the image is, or is made when nothing is there; it outlives the VM. Default: a new one, removed with the VM. */
  path?: string;
}

/** A disk and where its image is. */
export type DiskImage = DiskOptions & { path: string };

/** Makes what isn't there yet. `directory` is for images without a path of their own. */
export async function makeImages(disks: DiskOptions[], directory: string): Promise<DiskImage[]> {
  const images = disks.map((disk) => ({ ...disk, path: disk.path ?? path.join(directory, disk.id) }));
  for (const image of images) {
    if (!existsSync(image.path)) await makeImage(image);
  }
  return images;
}

async function makeImage({ path: file, format = 'raw', sizeMiB, content }: DiskImage): Promise<void> {
  const raw = format === 'raw' ? file : `${file}.raw`;
  writeFileSync(raw, '', { flag: 'wx' });
  truncateSync(raw, sizeMiB * 1024 * 1024);
  if (content) await run('mke2fs', '-q', '-t', content, raw);
  if (format === 'raw') return;
  await run('qemu-img', 'convert', '-f', 'raw', '-O', format, raw, file);
  await run('rm', raw);
}

/** The disks of a standby: raw and new, the devices the same. `folder`: where the images are to be, when they must outlive its VM. */
export function standbyDisks(disks: DiskOptions[], folder?: string): DiskOptions[] {
  return disks.map(({ path: _primarys, content: _content, ...disk }) => ({
    ...disk,
    format: 'raw' as const,
    ...(folder !== undefined && { path: path.join(folder, disk.id) }),
  }));
}

/** What Linux calls them: each driver counts its own. */
export function guestNames(disks: DiskOptions[]): string[] {
  let virtio = 0;
  let scsi = 0;
  const letter = (n: number) => String.fromCharCode('a'.charCodeAt(0) + n);
  return disks.map(({ bus = 'virtio-blk' }) =>
    bus === 'virtio-blk' ? `vd${letter(virtio++)}` : `sd${letter(scsi++)}`,
  );
}

/** QEMU's arguments for all of a VM's disks. */
export function diskArguments(images: DiskImage[]): string[] {
  const scsi = images.some(({ bus }) => bus === 'virtio-scsi')
    ? ['-device', 'virtio-scsi-pci,id=scsi0,addr=0x10']
    : [];
  let ides = 0;
  return [
    ...scsi,
    ...images.flatMap((image) => [
      ...(image.namedNodes ? blockdevArguments(image) : driveArguments(image)),
      ...(image.iothread ? ['-object', `iothread,id=thread-${image.id}`] : []),
      ...['-device', deviceOf(image, image.bus === 'ide' ? ides++ : 0)],
    ]),
  ];
}

function driveArguments(image: DiskImage): string[] {
  const { id, path: file, format = 'raw', cache = 'writeback', aio = 'threads', readOnly, shared } = image;
  const options = [`if=none,id=drive-${id},file=${file},format=${format}`, `cache=${cache},aio=${aio}`];
  if (shared) options.push('file.locking=off');
  if (readOnly) options.push('readonly=on');
  return ['-drive', [...options, 'discard=unmap'].join(',')];
}

function blockdevArguments(image: DiskImage): string[] {
  const { id, path: file, format = 'raw', cache = 'writeback', aio = 'threads', readOnly, shared } = image;
  const common = {
    cache: { direct: cache === 'none' || cache === 'directsync', 'no-flush': false },
    'read-only': readOnly ?? false,
    discard: 'unmap',
  };
  const storage = {
    driver: 'file',
    'node-name': `storage-${id}`,
    filename: file,
    aio,
    locking: shared ? 'off' : 'auto',
    ...common,
  };
  const node = { driver: format, 'node-name': `drive-${id}`, file: `storage-${id}`, ...common };
  return [storage, node].flatMap((options) => ['-blockdev', JSON.stringify(options)]);
}

function deviceOf({ id, bus = 'virtio-blk', cache, iothread }: DiskImage, ide: number): string {
  // Whether writes are cached is the device's to say when the nodes are QEMU's own; with -drive both say the same.
  const writeCache = `write-cache=${cache === 'writethrough' || cache === 'directsync' ? 'off' : 'on'}`;
  const common = `id=${id},drive=drive-${id},${writeCache}`;
  if (bus === 'virtio-blk') return `virtio-blk-pci,${common}${iothread ? `,iothread=thread-${id}` : ''}`;
  if (bus === 'virtio-scsi') return `scsi-hd,bus=scsi0.0,${common}`;
  return `ide-hd,bus=ide.${ide >> 1},unit=${ide & 1},${common}`;
}
