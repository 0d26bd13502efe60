/** The test guests' files, built on first use by guest/build.sh. */
import { existsSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { run } from './child.ts';

export const packageRoot = path.join(path.dirname(fileURLToPath(import.meta.url)), '..', '..');

export interface GuestFiles {
  /** The Linux guest's kernel and initial RAM disk (guest/init explains its command line). */
  kernel: string;
  initrd: string;
  /** The same with what a guest with disks needs. */
  initrdDisks: string;
  /** The multiboot guest (guest/baremetal.c). */
  baremetal: string;
}

/** A checkout keeps what it has built beside it; where only the package is installed, its folder is the package manager's. COLO_GUEST_FOLDER: somewhere else. */
const GUEST_FOLDER =
  process.env['COLO_GUEST_FOLDER'] ??
  (existsSync(path.join(packageRoot, 'src'))
    ? path.join(packageRoot, '.cache', 'guest')
    : '/var/cache/colo-agent/guest');

/** Safe when several processes call it at once. Takes milliseconds when nothing has changed; the first time downloads a kernel. */
export async function buildGuest(directory = GUEST_FOLDER): Promise<GuestFiles> {
  await run('sh', path.join(packageRoot, 'guest', 'build.sh'), directory);
  return {
    kernel: path.join(directory, 'vmlinuz'),
    initrd: path.join(directory, 'initrd'),
    initrdDisks: path.join(directory, 'initrd-disks'),
    baremetal: path.join(directory, 'baremetal.elf'),
  };
}
