import type { Command } from 'commander';
import { DEFAULT_TIMINGS, type Timings } from '../protocol/machine.ts';
import { CliError, EXIT } from './exit-codes.ts';
import { integer } from './option-parsers.ts';

export interface PeerOptions {
  heartbeat: number;
  peerTimeout: number;
  stallTimeout: number;
}

/** A peer counts as dead only when so many of its heartbeats have failed to come (native/core/heartbeat.h, kHeartbeatsInTimeoutMin). */
const HEARTBEATS_IN_TIMEOUT_MIN = 3;

/** When the other host counts as dead: the same questions on both sides. */
export function withPeerOptions(command: Command): Command {
  return command
    .option('--heartbeat <ms>', 'a sign of life so often', integer(10, 10_000), DEFAULT_TIMINGS.heartbeatMs)
    .option(
      '--peer-timeout <ms>',
      'a peer that says nothing for so long is lost; at least three of its heartbeats',
      integer(50, 600_000),
      DEFAULT_TIMINGS.peerTimeoutMs,
    )
    .option(
      '--stall-timeout <ms>',
      'so is one whose heartbeats come but whose agent does nothing for so long',
      integer(1000, 600_000),
      DEFAULT_TIMINGS.stallTimeoutMs,
    );
}

/** Throws CliError for times that contradict each other. */
export function peerTimings({
  heartbeat,
  peerTimeout,
  stallTimeout,
}: PeerOptions): Pick<Timings, 'heartbeatMs' | 'peerTimeoutMs' | 'stallTimeoutMs'> {
  if (peerTimeout < HEARTBEATS_IN_TIMEOUT_MIN * heartbeat) {
    throw new CliError(
      EXIT.usage,
      `--peer-timeout ${peerTimeout} is shorter than ${HEARTBEATS_IN_TIMEOUT_MIN} heartbeats (--heartbeat ${heartbeat}): ` +
        'one delayed packet would count as a death',
    );
  }
  if (stallTimeout < peerTimeout) {
    throw new CliError(
      EXIT.usage,
      `--stall-timeout ${stallTimeout} is shorter than --peer-timeout ${peerTimeout}`,
    );
  }
  return { heartbeatMs: heartbeat, peerTimeoutMs: peerTimeout, stallTimeoutMs: stallTimeout };
}
