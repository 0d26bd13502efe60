/** Small files that must survive a crash of the host at any moment. */
import { existsSync } from 'node:fs';
import { type FileHandle, mkdir, open, rename } from 'node:fs/promises';
import path from 'node:path';

/**
 * Durable when it resolves: written beside, synced, and put in place of the old one at once; on a file system that is full, over the old one, which
 * needs no room. Rejects with the system's error.
 */
export async function replaceFile(file: string, text: string): Promise<void> {
  await mkdir(path.dirname(file), { recursive: true });
  try {
    await writeSynced(await open(`${file}.new`, 'w', 0o644), text);
  } catch (error) {
    const full = ['ENOSPC', 'EDQUOT'].includes((error as NodeJS.ErrnoException).code ?? '');
    if (!full || !existsSync(file)) throw error;
    await writeSynced(await open(file, 'r+'), text);
    return;
  }
  await rename(`${file}.new`, file);
  await syncFolder(path.dirname(file));
}

async function writeSynced(file: FileHandle, text: string): Promise<void> {
  try {
    await file.write(text, 0);
    await file.truncate(Buffer.byteLength(text));
    await file.sync();
  } finally {
    await file.close();
  }
}

async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
