/**
 * Every metric, and where it is in a status. docs/metrics.md has the same table for people. What a status has over its last checkpoints alone (p50, p99, shares) is left
 * out: Prometheus makes them from histograms and sums, over whatever time one asks for. What there is nothing to tell of has no series.
 */
import type { Histogram } from '../agent/durations.ts';
import type { PrimaryStatus, SecondaryStatus, Status } from '../agent/status.ts';
import type { HeartbeatQuantiles } from '../native/binding.ts';
import type { Buckets, Family, Kind, Quantiles, Sample } from './exposition.ts';
import { type Reading, type Readings, VM_WORDS } from './readings.ts';

/** `one of`: a series for each possible word, 1 for the one that it is. */
type Value =
  | number
  | boolean
  | null
  | Buckets
  | Quantiles
  | { label: string; of: readonly string[]; is: string | null };

interface Metric {
  name: string;
  kind: Kind;
  help: string;
  /** Null: there is nothing to tell, of this role or now. */
  read: (reading: Reading) => Value;
}

const ROLES = ['primary', 'secondary'];
const TRACKERS = ['userfaultfd', 'compare'];

const METRICS: readonly Metric[] = [
  {
    name: 'colo_agent_up',
    kind: 'gauge',
    help: "1 while the VM's agent answers; without it nothing else is known of the VM, but for what the daemon says.",
    read: (reading) => 'status' in reading,
  },
  {
    name: 'colo_agent_role',
    kind: 'gauge',
    help: 'What the agent is to the VM, one of the roles being 1.',
    read: (reading) => oneOf('role', ROLES, wordsOf(reading)?.role ?? null),
  },
  {
    name: 'colo_agent_state',
    kind: 'gauge',
    help: 'The state that `colo-agent status` shows, or `list` of an agent that does not run, one of them being 1.',
    read: (reading) => oneOf('state', VM_WORDS, wordsOf(reading)?.state ?? null),
  },
  {
    name: 'colo_agent_restarts',
    kind: 'counter',
    help: "How often the daemon has started the VM's agent again; none without a daemon.",
    read: ({ restarts }) => restarts ?? null,
  },
  gauge(
    'generation',
    'Grows by at least one whenever it is decided anew who runs the VM.',
    (s) => s.generation,
  ),
  gauge('epoch', 'The last committed checkpoint of this session.', ({ epoch }) => epoch),
  gauge(
    'last_checkpoint_age_seconds',
    'How old the last committed checkpoint was at the scrape; none before the first.',
    ({ lastCheckpointAgeMs }) => seconds(lastCheckpointAgeMs),
  ),
  counter('checkpoints', 'Checkpoints committed (primary) or loaded (secondary).', (s) => s.checkpoints),
  histogram(
    'failover_duration_seconds',
    "Take-overs here: from what told of the primary's end, or its hand-over, until the VM ran.",
    ({ takeOvers }) => takeOvers,
  ),
  gauge('link_up', '1 while the control connection to the peer stands.', ({ link }) => link !== null),
  gauge(
    'peer_certificate_expiry_timestamp_seconds',
    'When the certificate of the peer ends; none in plain text or without a connection.',
    ({ link }) => (link?.expires ? Date.parse(link.expires) / 1000 : null),
  ),
  gauge(
    'witness_up',
    '1 when etcd answered the last request; none with another witness, or before the first.',
    ({ witness }) => witness.answers,
  ),
  counter(
    'heartbeats_sent',
    'Heartbeats sent to the peer in this session.',
    (s) => s.heartbeat?.sent ?? null,
  ),
  counter(
    'heartbeats_received',
    'Heartbeats of the peer in this session.',
    (s) => s.heartbeat?.received ?? null,
  ),
  summary('heartbeat_rtt_seconds', 'Of the last heartbeats: there and back.', (s) => s.heartbeat?.rttUs),
  summary('heartbeat_gap_seconds', 'Between the last heartbeats of the peer.', (s) => s.heartbeat?.gapUs),
  counter(
    'scrub_checked_pages',
    'Pages hashed (primary) or compared (secondary).',
    (s) => s.scrub.checkedPages,
  ),
  counter(
    'scrub_differences',
    "How often the standby's RAM was found not to be the primary's.",
    (s) => s.scrub.found,
  ),

  histogram(
    'pause_duration_seconds',
    'How long the guest stood for a checkpoint.',
    ofPrimary((s) => s.histograms.pause),
  ),
  histogram(
    'checkpoint_duration_seconds',
    'From `stop` of the guest until the standby had the checkpoint whole: so long output waits beyond the interval.',
    ofPrimary((s) => s.histograms.checkpoint),
  ),
  gauge(
    'sync_ratio',
    'How much of the first copy is done, while there is one.',
    ofPrimary(({ syncPercent }) => (syncPercent === null ? null : syncPercent / 100)),
  ),
  gauge(
    'sync_remaining_seconds',
    'How long the first copy will still take, while there is one.',
    ofPrimary((s) => s.syncSecondsLeft),
  ),
  counter(
    'dirty_pages',
    'Pages that checkpoints found changed.',
    ofPrimary((s) => s.dirtyPages.total),
  ),
  counter(
    'sent_bytes',
    'Sent to standbys, first copies and checkpoints.',
    ofPrimary((s) => s.sentBytes),
  ),
  counter(
    'checkpoint_wire_bytes',
    'Sent to standbys for checkpoints alone.',
    ofPrimary((s) => s.checkpointBytes.wire),
  ),
  counter(
    'checkpoint_raw_bytes',
    "The plain size of the checkpoints' pages; what was sent for them is less by what encoding saved.",
    ofPrimary((s) => s.checkpointBytes.raw),
  ),
  gauge(
    'held_frames',
    'Frames of the guest that wait for their checkpoint.',
    ofPrimary((s) => s.heldFrames),
  ),
  gauge(
    'held_bytes',
    'The size of the frames that wait for their checkpoint.',
    ofPrimary((s) => s.heldBytes),
  ),
  counter(
    'dropped_frames',
    'Frames of the guest that the full gate dropped, as a NIC with a full queue does.',
    ofPrimary((s) => s.droppedFrames),
  ),
  gauge(
    'tracker',
    'How dirty pages are found, one of the ways being 1.',
    ofPrimary(({ tracker }) => ({ label: 'tracker', of: TRACKERS, is: tracker })),
  ),
  counter(
    'scrub_skipped_pages',
    'Pages left out because they are sent anyway or hold nothing.',
    ofPrimary((s) => s.scrub.skippedPages),
  ),
  counter(
    'scrub_rounds',
    'How often all of RAM has been gone through.',
    ofPrimary((s) => s.scrub.rounds),
  ),
  gauge(
    'disk_differing_bytes',
    'What the standby lacks of all disks, as far as is known here.',
    ofPrimary(({ disks }) => sum(disks, (disk) => disk.differingBytes)),
  ),
  gauge(
    'disk_logged_bytes',
    'Writes of the guest to all disks that wait for their checkpoint.',
    ofPrimary(({ disks }) => sum(disks, (disk) => disk.loggedBytes)),
  ),
  counter(
    'disk_writes',
    'Writes of the guest to all disks.',
    ofPrimary(({ disks }) => sum(disks, (disk) => disk.writes)),
  ),

  counter(
    'received_bytes',
    'Received from primaries, first copies and checkpoints.',
    ofSecondary((s) => s.receivedBytes),
  ),
  histogram(
    'flush_duration_seconds',
    'How long it took to bring a checkpoint into RAM and disks.',
    ofSecondary((s) => s.histograms.flush),
  ),
  histogram(
    'load_duration_seconds',
    'How long it took to load a checkpoint into the devices.',
    ofSecondary((s) => s.histograms.load),
  ),
];

export function familiesOf(readings: Readings, version: string): Family[] {
  const build: Family = {
    name: 'colo_agent_build',
    kind: 'info',
    help: 'The version of colo-agent that tells all this.',
    samples: [{ labels: { version }, value: 1 }],
  };
  const families = METRICS.map(({ name, kind, help, read }) => ({
    name,
    kind,
    help,
    samples: [...readings].flatMap(([vm, reading]) => samplesOf(vm, read(reading))),
  }));
  return [build, ...families];
}

function samplesOf(vm: string, value: Value): Sample[] {
  if (value === null) return [];
  if (typeof value === 'boolean') return [{ labels: { vm }, value: Number(value) }];
  if (typeof value === 'number' || !('is' in value)) return [{ labels: { vm }, value }];
  const { label, of, is } = value;
  return of.map((word) => ({ labels: { vm, [label]: word }, value: Number(word === is) }));
}

function wordsOf(reading: Reading): { role: string | null; state: string } | undefined {
  return 'status' in reading ? reading.status : reading.resting;
}

/** Nothing where the word isn't known. */
function oneOf(label: string, of: readonly string[], is: string | null): Value {
  return is === null ? null : { label, of, is };
}

function metric(kind: Kind, name: string, help: string, read: (status: Status) => Value): Metric {
  return {
    name: `colo_agent_${name}`,
    kind,
    help,
    read: (reading) => ('status' in reading ? read(reading.status) : null),
  };
}

function gauge(name: string, help: string, read: (status: Status) => Value): Metric {
  return metric('gauge', name, help, read);
}

function counter(name: string, help: string, read: (status: Status) => number | null): Metric {
  return metric('counter', name, help, read);
}

function histogram(name: string, help: string, read: (status: Status) => Histogram | null): Metric {
  return metric('histogram', name, help, (status) => {
    const counted = read(status);
    return (
      counted && {
        bounds: counted.boundsMs.map(toSeconds),
        counts: counted.counts,
        sum: toSeconds(counted.sumMs),
      }
    );
  });
}

function summary(
  name: string,
  help: string,
  read: (status: Status) => HeartbeatQuantiles | undefined,
): Metric {
  return metric('summary', name, help, (status) => {
    const us = read(status);
    return us
      ? [
          [0.5, us.p50 / 1e6],
          [0.99, us.p99 / 1e6],
          [1, us.max / 1e6],
        ]
      : null;
  });
}

function ofPrimary<V>(read: (status: PrimaryStatus) => V): (status: Status) => V | null {
  return (status) => (status.role === 'primary' ? read(status) : null);
}

function ofSecondary<V>(read: (status: SecondaryStatus) => V): (status: Status) => V | null {
  return (status) => (status.role === 'secondary' ? read(status) : null);
}

function seconds(ms: number | null): number | null {
  return ms === null ? null : toSeconds(ms);
}

function toSeconds(ms: number): number {
  return ms / 1000;
}

function sum<T>(items: readonly T[], of: (item: T) => number): number {
  return items.reduce((total, item) => total + of(item), 0);
}
