import type { WitnessStatus } from '../agent/arbitration.ts';
import type { LinkStatus } from '../agent/link-security.ts';
import type { Summary } from '../agent/samples.ts';
import type { DiskStatus, ScrubStatus, Status } from '../agent/status.ts';
import { checksOfReason, hint } from '../doctor/hints.ts';

/** A status for people: a word, the reason, and the figures that matter for the role. */
export function statusText(status: Status): string {
  const rows: [string, string][] = [
    ['vm', `${status.vm} (${status.role}, QEMU ${status.qemuPid})`],
    ['state', `${status.state}: ${status.reason}${hint(checksOfReason(status.reason))}`],
    ['if the primary died now', status.ifPrimaryDies],
    ['witness', witnessText(status.witness)],
    ['generation, epoch', `${status.generation}, ${status.epoch}`],
    ['link', linkText(status.link)],
    [
      'last checkpoint',
      status.lastCheckpointAgeMs === null ? 'none' : `${status.lastCheckpointAgeMs} ms ago`,
    ],
  ];
  if (status.heartbeat !== null) rows.push(['heartbeats', heartbeatText(status.heartbeat)]);
  if (status.role === 'primary') {
    if (status.syncPercent !== null) {
      const left = status.syncSecondsLeft === null ? '' : `, about ${status.syncSecondsLeft} s left`;
      rows.push(['first copy', `${status.syncPercent} %${left}`]);
    }
    rows.push(
      ['checkpoints', `${status.checkpoints} to ${status.peer} (${status.mode})`],
      [
        'guest stands still',
        `${summaryText(status.pauseMs, 'ms')}; ${(status.pauseShare * 100).toFixed(1)} % of the time`,
      ],
      ['dirty pages', `${status.dirtyPages.last ?? '-'} (p50 ${status.dirtyPages.p50 ?? '-'})`],
      ['sent', megabytes(status.sentBytes)],
      [
        'held output',
        `${status.heldFrames} frames, ${status.heldBytes} bytes; dropped ${status.droppedFrames}`,
      ],
      ...status.disks.map((disk): [string, string] => [`disk ${disk.id}`, diskText(disk)]),
      ['tracker', status.trackerReason ? `${status.tracker} (${status.trackerReason})` : `${status.tracker}`],
      ['scrub', scrubText(status.scrub)],
    );
  } else {
    rows.push(
      ['listens at', status.listen],
      ['checkpoints', `${status.checkpoints}, ${megabytes(status.receivedBytes)}`],
      ...status.disks.map(({ id, file }): [string, string] => [`disk ${id}`, file]),
      ['flush', summaryText(status.flushMs, 'ms')],
      ['load', summaryText(status.loadMs, 'ms')],
      [
        'scrub',
        `${status.scrub.checkedPages} pages, found ${status.scrub.found}; ${summaryText(status.scrub.ms, 'ms')}`,
      ],
    );
  }
  const width = Math.max(...rows.map(([name]) => name.length));
  return rows.map(([name, value]) => `${name.padEnd(width)}  ${value}`).join('\n');
}

function witnessText({ kind, node, answers, reason }: WitnessStatus): string {
  if (kind === 'none') return 'none: a cut link makes both VMs run';
  if (kind === 'manual') return 'none: a person decides';
  return `etcd, ${answers === false ? `doesn't answer: ${reason}` : 'answers'}; this host is ${node}`;
}

function linkText(link: LinkStatus | null): string {
  if (!link) return 'none';
  if (link.encryption === 'plain') return 'plain text (--insecure)';
  const by = link.encryption === 'kernel-tls' ? ' by the kernel' : '';
  return `${link.cipher}${by}; the peer: ${link.peer}, SHA-256 ${link.fingerprint?.slice(0, 16)}..., until ${link.expires?.slice(0, 10)}`;
}

function diskText({ state, sizeBytes, differingBytes, loggedBytes, writes }: DiskStatus): string {
  const lacking = differingBytes > 0 ? `, the standby lacks ${megabytes(differingBytes)}` : '';
  return `${state}, ${megabytes(sizeBytes)}${lacking}; ${writes} writes, ${megabytes(loggedBytes)} wait`;
}

function scrubText(scrub: ScrubStatus): string {
  if (scrub.sliceBytes === 0) return 'off';
  const round = scrub.lastRoundMs === null ? '' : ` (the last in ${(scrub.lastRoundMs / 1000).toFixed(1)} s)`;
  const pages = `${scrub.checkedPages} pages checked, ${scrub.skippedPages} left out`;
  const found = scrub.lastFinding === null ? 'found 0' : `FOUND ${scrub.found}: ${scrub.lastFinding}`;
  return `${scrub.rounds} rounds${round}; ${pages}; ${found}; p50 ${scrub.cpuUs.p50 ?? '-'} us a checkpoint`;
}

function heartbeatText({ received, rttUs, gapUs }: NonNullable<Status['heartbeat']>): string {
  const ms = (us: number) => (us / 1000).toFixed(1);
  return `${received} of the peer, at most ${ms(gapUs.max)} ms apart; there and back in ${ms(rttUs.p50)} ms, p99 ${ms(rttUs.p99)}`;
}

function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

function summaryText(summary: Summary, unit: string): string {
  if (summary.last === null) return '-';
  return `last ${summary.last} ${unit}, p50 ${summary.p50}, p99 ${summary.p99}, max ${summary.max}`;
}
