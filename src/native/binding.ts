/**
 * The native addon as TypeScript sees it. Guest memory never becomes a JavaScript buffer: these objects move it between QEMU, staging and
 * sockets on threads of their own, one asynchronous call a phase.
 *
 * Every failure is a `NativeError` (an `Error` with a stable `code`, and `errno` where a system call is behind it). Methods of a
 * closed object throw ERR_COLO_CLOSED; arguments of a wrong type throw a TypeError with code ERR_COLO_ARGUMENT that names the argument.
 */
import { createRequire } from 'node:module';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

export interface NativeError extends Error {
  code: string;
  errno?: number;
}

/** A RAM block; addresses are `bigint` because they need all 64 bits. */
export interface NativeRamBlock {
  name: string;
  hostAddress: bigint;
  sizeBytes: number;
}

export interface PrimaryEngineOptions {
  pid: number;
  blocks: NativeRamBlock[];
  threads: number;
  shadow: boolean;
  tracker: 'auto' | 'userfaultfd' | 'compare';
  stagingResidentBytes: number;
  /** RAM that is hashed for each checkpoint, in whole pages; 0: no scrub. */
  scrubSliceBytes: number;
  /** In the order of HELLO's copied disks: an index on the wire is an index here. The engine uses them as long as it is open. */
  disks: DiskExport[];
}

export interface TrackerInfo {
  kind: 'userfaultfd' | 'compare';
  /** Why the fall-back is in use; empty for userfaultfd. */
  reason: string;
  access: ('mapped' | 'remote')[];
}

export interface CaptureResult {
  pages: number;
  /** What the guest wrote to its disks in this epoch. */
  diskBytes: number;
  /** On CLOCK_MONOTONIC, as all `beganUs`; the steps follow each other without a gap. */
  beganUs: number;
  sealUs: number;
  scanUs: number;
  copyUs: number;
}

export interface TransmitResult {
  wireBytes: number;
  rawBytes: number;
  zeroPages: number;
  unchangedPages: number;
  deltaPages: number;
  rawPages: number;
  beganUs: number;
  encodeUs: number;
  totalUs: number;
  /** Pages whose hashes went along, and those of the slice that were left out, because they are sent anyway or the host has no memory for them. */
  scrubCheckedPages: number;
  scrubSkippedPages: number;
  /** How often all of RAM has been gone through since the engine began. */
  scrubRounds: number;
  /** Processor time that hashing took, beside everything else. */
  scrubCpuUs: number;
}

export interface SyncProgress {
  doneBytes: number;
  totalBytes: number;
  /** Sent by this job so far. */
  wireBytes: number;
}

export interface PrimaryEngine {
  info(): TrackerInfo;
  /** The VM is stopped and drained. */
  protect(): Promise<void>;
  connect(
    host: string,
    port: number,
    token: Uint8Array,
    generation: number,
    connections: number,
    credentials: TlsCredentials | null,
  ): Promise<void>;
  /** Also ends the disks' sessions: what the standby hasn't confirmed differs again. */
  disconnect(): void;
  /**
   * Brings the standby's disks up to date, as part of epoch 0, while the guest runs: the blocks that differ, which are all of a disk whose
   * `allDiffer` is true, are read from its source, asked about by their hashes, and sent where the standby's are others. From here on the
   * guest's writes are logged. Between `connect` and `protect`; every disk has its source connected. `bytesPerSecond` limits what is sent.
   */
  syncDisks(
    allDiffer: boolean[],
    bytesPerSecond: number,
    onProgress: (progress: SyncProgress) => void,
  ): Promise<void>;
  /** `stop` is about to be asked for: disk writes in flight don't wait for room until the next capture. */
  hurry(): void;
  /** The standby has loaded `epoch`: its disk writes, and those before, are forgotten. */
  confirm(epoch: number): void;
  sync(bytesPerSecond: number, onProgress: (progress: SyncProgress) => void): Promise<void>;
  /** The VM is stopped and drained. Seals `gate` (null: none) as the end of `epoch`. */
  capture(epoch: number, gate: OutputGate | null): Promise<CaptureResult>;
  transmit(epoch: number, vmstateFd: number): Promise<TransmitResult>;
  abandon(): void;
  /** Ends all threads and lifts the protection; idempotent. */
  close(): void;
}

export interface DirtyRateProbeOptions {
  pid: number;
  blocks: NativeRamBlock[];
  /** That scan. */
  threads: number;
  /** Of so many pages, one is copied and encoded. */
  sampleOneIn: number;
}

/** What a checkpoint at the end of one window would have had to do. Bytes, copy and encode are those of the sampled dirty pages. */
export interface DirtyRateRound {
  windowUs: number;
  dirtyPages: number;
  scanUs: number;
  sampledPages: number;
  sampledBytes: number;
  zeroPages: number;
  unchangedPages: number;
  deltaPages: number;
  rawPages: number;
  copyUs: number;
  encodeUs: number;
}

/** Watches what a guest that nobody protects writes to its RAM, without stopping it. However it ends, QEMU is left as it was. */
export interface DirtyRateProbe {
  /** Begins the first window. */
  begin(): Promise<void>;
  /** Resolves when the window is `intervalUs` long, and has begun the next one. */
  watch(intervalUs: number): Promise<DirtyRateRound>;
  close(): void;
}

export interface DiskExportOptions {
  /** The disk's id, for errors. */
  id: string;
  sizeBytes: number;
  /** What the log of guest writes may hold; from `pressureBytes` on a checkpoint is asked for. */
  limitBytes: number;
  pressureBytes: number;
  onPressure(): void;
  /**
   * The standby's copy of this disk can't be kept up: the log ran over, or the mirror's connection has ended. At most once a session; a
   * checkpoint of that session fails from here on with ERR_COLO_DISK.
   */
  onFailed(reason: string): void;
}

export interface DiskStats {
  loggedBytes: number;
  /** The guest's writes since the export began. */
  writes: number;
  /** Connected and negotiated: the mirror, and perhaps tools. */
  clients: number;
  /** Blocks of 64 KiB that the standby lacks, as far as this side knows. */
  differingBlocks: number;
}

/** The NBD export that QEMU's mirror job writes to: it takes the guest's writes into the running epoch's log and answers at once. */
export interface DiskExport {
  /** Serves the NBD client at the other end of a stream socket, which is taken over, until it leaves. Any number of clients. */
  serve(fd: number): void;
  /** The NBD export of QEMU from which this disk's blocks are read; `fd` is a connected stream socket and is taken over. */
  connectSource(fd: number, exportName: string): Promise<void>;
  closeSource(): void;
  stats(): DiskStats;
  close(): void;
}

/** Bytes that loading a device state overwrites: see src/vm/load-overwrites.ts. */
export interface PreservedRange {
  /** Index into `blocks`. */
  block: number;
  offsetBytes: number;
  sizeBytes: number;
}

export interface StandbyEngineOptions {
  pid: number;
  blocks: NativeRamBlock[];
  mailboxFd: number;
  mailboxStateOffset: number;
  mailboxStateBytes: number;
  machine: string;
  preserved: PreservedRange[];
  /** In the order of HELLO's copied disks. Open for reading and writing, without O_DIRECT; the engine keeps descriptors of its own. */
  disks: { id: string; fd: number; sizeBytes: number }[];
  stagingLimitBytes: number;
  onStaged(checkpoint: StagedCheckpoint): void;
  onFailed(error: NativeError): void;
}

export interface StagedCheckpoint {
  epoch: number;
  pages: number;
  wireBytes: number;
  vmstateBytes: number;
  diskBytes: number;
  /** When its first frame came, and how long it took from there until it was complete. */
  beganUs: number;
  receivedUs: number;
}

/** RAM, disks, the device state's way into the mailbox, and the scrub, one after the other. */
export interface CommitResult {
  beganUs: number;
  ramUs: number;
  disksUs: number;
  mailboxUs: number;
  scrubUs: number;
  scrubbedPages: number;
}

export interface StandbyEngine {
  openSession(token: Uint8Array, generation: number, connections: number): void;
  /** The connection is taken over, and closed when it is refused. */
  addConnection(connection: PeerConnection, preface: Uint8Array): void;
  openEpoch(epoch: number): void;
  /** Fails with ERR_COLO_SCRUB when everything is done, but a page that was hashed isn't the primary's. */
  commit(epoch: number): Promise<CommitResult>;
  /** After the device state has been loaded: puts the preserved ranges back as the last commit left them. */
  restorePreserved(): void;
  /** Resolves when everything that was committed is on the disks' media. No commit is in progress. */
  syncDisks(): Promise<void>;
  closeSession(): void;
  close(): void;
}

export interface GateOptions {
  limitBytes: number;
  pressureBytes: number;
  onOutputHeld(): void;
  onPressure(): void;
  onBroken(reason: string): void;
}

export interface GateStats {
  heldFrames: number;
  heldBytes: number;
  releasedFrames: number;
  releasedBytes: number;
  droppedFrames: number;
  holding: boolean;
}

export interface OutputGate {
  addPort(heldFd: number, releaseFd: number): number;
  release(epoch: number): void;
  open(): void;
  flush(timeoutMs: number): Promise<boolean>;
  stats(): GateStats;
  close(): void;
}

/**
 * `silent`: nothing came for the time-out. `closed`: the connection couldn't be opened, or has ended. `stalled`: heartbeats come, but the peer's
 * `progress` doesn't move. `malformed`: what came aren't the heartbeats of this session.
 */
export type HeartbeatVerdict = 'silent' | 'closed' | 'stalled' | 'malformed';

export interface HeartbeatOptions {
  /** A connection whose preface has been read, which is taken over; or where to connect to, with READY's token of 16 bytes. */
  end: PeerConnection | { host: string; port: number; token: Uint8Array; credentials: TlsCredentials | null };
  generation: number;
  intervalMs: number;
  timeoutMs: number;
  /** Instead of `timeoutMs` before the peer's first heartbeat. */
  firstTimeoutMs: number;
  stallTimeoutMs: number;
  /** An ended connection is told so much later. */
  closedGraceMs: number;
  /** Once at most. `reason` goes on after "the primary" or "the secondary"; `heardUs`, on CLOCK_MONOTONIC: when the peer was last known to live. */
  onVerdict(verdict: HeartbeatVerdict, reason: string, heardUs: number): void;
  /** Once, before the first heartbeat: why the thread doesn't run before ordinary ones, and why its memory may be swapped out; null where nothing is wrong. */
  onPrivileges(noRealTime: string | null, noLockedMemory: string | null): void;
}

export interface HeartbeatQuantiles {
  min: number;
  p50: number;
  p99: number;
  max: number;
}

export interface HeartbeatStats {
  sent: number;
  received: number;
  /** Zeros while there is nothing to tell. */
  rttUs: HeartbeatQuantiles;
  /** Between two heartbeats of the peer, as they came here. */
  gapUs: HeartbeatQuantiles;
  /** The kernel lets the thread run before ordinary ones. */
  realTime: boolean;
}

/** Heartbeats with the peer's agent, on a thread of their own (native/core/heartbeat.h). */
export interface Heartbeat {
  /** Shows the peer that this event loop runs. */
  progress(): void;
  stats(): HeartbeatStats;
  close(): void;
}

/** A host's watchdog device, armed: it resets the host unless it is fed, or disarmed, within `timeoutS` (native/core/watchdog.h). */
export interface Watchdog {
  readonly timeoutS: number;
  readonly identity: string;
  feed(): void;
  disarm(): void;
  /** Without `disarm` before it the host will be reset. */
  close(): void;
}

export interface TlsCredentialsOptions {
  /** PEM files; the key's may be readable by its owner alone. `trustedFile`: the peers' certificates, or CAs. */
  certificateFile: string;
  keyFile: string;
  trustedFile: string;
  /** A peer's certificate must be for this VM, or, when `peerName` isn't empty, for this host. */
  vm: string;
  peerName: string;
}

/** Who this agent is to its peers, and whom it believes. Throws ERR_COLO_CREDENTIALS when its files are of no use. */
export interface TlsCredentials {
  /** Of our own certificate: what it is for, SHA-256 in hex digits, the end of its time in seconds since 1970. */
  own(): { names: string; fingerprint: string; expiresS: number };
  close(): void;
}

export interface TlsInfo {
  /** "TLSv1.3, TLS_AES_128_GCM_SHA256" */
  cipher: string;
  /** Whether kernel TLS encrypts what is sent. */
  kernelSends: boolean;
  /** What the peer's certificate is for, its SHA-256, and the end of its time in seconds since 1970. */
  peer: string;
  fingerprint: string;
  expiresS: number;
}

/** One connection to a peer: connected here, or given by an Acceptor. */
export interface PeerConnection {
  /**
   * `host` is an address. Rejects with ERR_COLO_LINK, which says whether nobody was there or who refused whom and why. `close` gives
   * it up at once.
   */
  connect(host: string, port: number, timeoutMs: number, credentials: TlsCredentials | null): Promise<void>;
  /** Null: plain text. */
  security(): TlsInfo | null;
  /** Once, instead of handing it to an engine or a heartbeat: a descriptor for `new net.Socket({ fd })`, which owns the connection from here on. */
  openSocket(): number;
  close(): void;
}

export interface CertificateRequest {
  commonName: string;
  /** VM names, or '*' for all. */
  vms: string[];
  /** Seconds since 1970. */
  validFromS: number;
  validUntilS: number;
}

export interface AcceptorOptions {
  host: string;
  port: number;
  /** Null: plain text. */
  credentials: TlsCredentials | null;
  /** The connection belongs to the callee: it calls openSocket(), hands it to a StandbyEngine or a Heartbeat, or closes it. */
  onAccepted(
    link: 'control' | 'bulk' | 'heartbeat' | 'doctor',
    connection: PeerConnection,
    preface: Uint8Array,
    peer: string,
  ): void;
  onRefused(peer: string, reason: string): void;
}

export interface Acceptor {
  readonly port: number;
  close(): void;
}

export interface ProcessWatch {
  signal(number: number): void;
  close(): void;
}

export interface MemoryFile {
  readWriteFd: number;
  writeOnlyFd: number;
}

export interface NativeBinding {
  PrimaryEngine: new (options: PrimaryEngineOptions) => PrimaryEngine;
  StandbyEngine: new (options: StandbyEngineOptions) => StandbyEngine;
  OutputGate: new (options: GateOptions) => OutputGate;
  DirtyRateProbe: new (options: DirtyRateProbeOptions) => DirtyRateProbe;
  DiskExport: new (options: DiskExportOptions) => DiskExport;
  Heartbeat: new (options: HeartbeatOptions) => Heartbeat;
  /** Arms it. Throws ERR_COLO_WATCHDOG. */
  Watchdog: new (
    path: string,
    timeoutS: number,
  ) => Watchdog;
  Acceptor: new (options: AcceptorOptions) => Acceptor;
  TlsCredentials: new (options: TlsCredentialsOptions) => TlsCredentials;
  PeerConnection: new () => PeerConnection;
  /** A new key and a certificate that it has signed itself, both PEM. */
  makeCertificate(request: CertificateRequest): { key: string; certificate: string };
  /** Whether whoever trusts this certificate (DER) also trusts those that its owner issues. Throws ERR_COLO_CREDENTIALS when it isn't one. */
  certificateMayIssue(certificate: Uint8Array): boolean;
  /** From here on neither a core dump nor a debugger without privileges gets at this process's memory. */
  forbidCoreDumps(): void;
  /** `onDying`: it runs no more, but may hold its memory and descriptors still; `onEnded`: it has gone (native/core/process_watch.h). */
  ProcessWatch: new (
    pid: number,
    onDying: () => void,
    onEnded: () => void,
  ) => ProcessWatch;
  connectUnix(path: string): number;
  /** A socket that listens at `path`, for QEMU to accept on. */
  listenUnix(path: string): number;
  /** `groups`: the supplementary ones. */
  peerCredentials(fd: number): { pid: number; uid: number; gid: number; groups: number[] };
  sendWithFds(socket: number, bytes: Uint8Array, fds: number[]): void;
  streamSocketPair(): [number, number];
  makeMemoryFile(name: string): MemoryFile;
  /** Truncates the file and rewinds the offset that QEMU shares through `writeOnlyFd`. */
  rewindMemoryFile(file: MemoryFile): void;
  /** A duplicate of another process's descriptor: they share its offset. */
  duplicateForeignFd(pid: number, fd: number): number;
  /** Whether a file or block device was never used. Waits while it reads what isn't a hole, at most `readBytesMax`; false when there is more. */
  readsAsZeros(fd: number, readBytesMax: number): boolean;
  /** Signals every eventfd of QEMU: of a VM that runs from a loaded device state, an interrupt may be missing (native/core/eventfd_kick.h). */
  kickEventfds(pid: number): number;
  closeFd(fd: number): void;
  /** A killed agent's connections close at once, however much memory it has (native/core/memory_keeper.h). */
  startMemoryKeeper(): boolean;
  /** One datagram to systemd's socket, a path or "@name"; never waits (native/core/service_manager.h). */
  notifyServiceManager(socket: string, message: string): void;
}

const packageRoot = path.join(path.dirname(fileURLToPath(import.meta.url)), '..', '..');

/** Finds build/Release first (cmake-js, node-gyp), then a prebuild for this platform. */
export const native = createRequire(import.meta.url)('node-gyp-build')(packageRoot) as NativeBinding;
