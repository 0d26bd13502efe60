/**
 * The vmstate mailbox: a qcow2 image with one internal snapshot whose VM state lies in one piece at a known place in the file. `snapshot-load` reads
 * it from there, so a new state is delivered by overwriting that piece. The fields are those of QEMU's docs/interop/qcow2.txt;
 * `qemu-img check` accepts the image.
 */

export const SNAPSHOT_TAG = 'colo';

const CLUSTER_BITS = 16;
const CLUSTER_BYTES = 1 << CLUSTER_BITS;
const STATE_CLUSTERS = 1024;

/** As many device states as 64 MiB hold is far more than any machine has; unused parts cost no memory. */
export const STATE_BYTES = STATE_CLUSTERS * CLUSTER_BYTES;

// Which cluster of the file holds what. The VM state follows.
const REFCOUNT_TABLE = 1;
const REFCOUNT_BLOCK = 2;
const ACTIVE_L1 = 3;
const SNAPSHOT_TABLE = 4;
const SNAPSHOT_L1 = 5;
const SNAPSHOT_L2 = 6;
const STATE = 7;

export const STATE_OFFSET_BYTES = STATE * CLUSTER_BYTES;
export const IMAGE_BYTES = STATE_OFFSET_BYTES + STATE_BYTES;

/** The snapshot's disk. Its VM state begins at the next L1 entry, which is the second: guest offset 512 MiB. */
const DISK_BYTES = 1 << 20;
const L1_ENTRIES = 2;
/** "Refcount is exactly one": the cluster may be written in place. */
const COPIED = 1n << 63n;

const at = (cluster: number) => BigInt(cluster * CLUSTER_BYTES);

/** Everything in front of the VM state. The file goes on with zeroes up to IMAGE_BYTES. */
export function mailboxHead(): Uint8Array {
  const head = new Uint8Array(STATE_OFFSET_BYTES);
  const view = new DataView(head.buffer);
  writeHeader(view);
  view.setBigUint64(REFCOUNT_TABLE * CLUSTER_BYTES, at(REFCOUNT_BLOCK));
  for (let cluster = 0; cluster < STATE + STATE_CLUSTERS; cluster += 1) {
    view.setUint16(REFCOUNT_BLOCK * CLUSTER_BYTES + 2 * cluster, 1);
  }
  writeSnapshot(view, head);
  // The first L1 entry stays 0: the disk itself is empty.
  view.setBigUint64(SNAPSHOT_L1 * CLUSTER_BYTES + 8, at(SNAPSHOT_L2) | COPIED);
  for (let index = 0; index < STATE_CLUSTERS; index += 1) {
    view.setBigUint64(SNAPSHOT_L2 * CLUSTER_BYTES + 8 * index, at(STATE + index) | COPIED);
  }
  return head;
}

function writeHeader(view: DataView): void {
  view.setUint32(0, 0x514649fb); // "QFI\xfb"
  view.setUint32(4, 3); // version
  view.setUint32(20, CLUSTER_BITS);
  view.setBigUint64(24, BigInt(DISK_BYTES));
  view.setUint32(36, L1_ENTRIES);
  view.setBigUint64(40, at(ACTIVE_L1));
  view.setBigUint64(48, at(REFCOUNT_TABLE));
  view.setUint32(56, 1); // clusters of the refcount table
  view.setUint32(60, 1); // snapshots
  view.setBigUint64(64, at(SNAPSHOT_TABLE));
  view.setUint32(96, 4); // refcount order: 16 bits
  view.setUint32(100, 104); // header length
}

function writeSnapshot(view: DataView, head: Uint8Array): void {
  const id = '1';
  const entry = SNAPSHOT_TABLE * CLUSTER_BYTES;
  const extraBytes = 16;
  view.setBigUint64(entry, at(SNAPSHOT_L1));
  view.setUint32(entry + 8, L1_ENTRIES);
  view.setUint16(entry + 12, id.length);
  view.setUint16(entry + 14, SNAPSHOT_TAG.length);
  view.setUint32(entry + 32, STATE_BYTES);
  view.setUint32(entry + 36, extraBytes);
  view.setBigUint64(entry + 40, BigInt(STATE_BYTES));
  view.setBigUint64(entry + 48, BigInt(DISK_BYTES));
  head.set(new TextEncoder().encode(id + SNAPSHOT_TAG), entry + 56);
}
