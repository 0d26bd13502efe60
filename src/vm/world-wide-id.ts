import { readFileSync, statSync } from 'node:fs';

const NO_SUCH_UNIT: ReadonlySet<string> = new Set(['ENOENT', 'ENOTDIR', 'ENAMETOOLONG', 'EACCES']);

/** The world-wide name of a block device's unit, which is the same on every host that reaches it; null where there is none. */
export function worldWideId(file: string): string | null {
  try {
    const { rdev } = statSync(file);
    const [major, minor] = [(rdev >> 8) & 0xfff, (rdev & 0xff) | ((rdev >> 12) & 0xfff00)];
    return readFileSync(`/sys/dev/block/${major}:${minor}/device/wwid`, 'latin1').trim() || null;
  } catch (error) {
    if (NO_SUCH_UNIT.has((error as NodeJS.ErrnoException).code ?? '')) return null;
    throw error;
  }
}
