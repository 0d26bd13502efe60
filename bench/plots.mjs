/** The charts of a run, as SVG files. */
import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { distribution } from './statistics.mjs';
import { lineChart } from './svg.mjs';

const GROWTH_AXES = {
  RAM: { file: 'ram', xLabel: "the guest's RAM, MiB", x: ({ memoryMiB }) => memoryMiB },
  'dirty pages': { file: 'dirty-pages', xLabel: 'dirty pages of a checkpoint', x: ({ pages }) => pages },
  VMs: { file: 'vms', xLabel: 'VMs on the host', x: ({ vms }) => vms },
};

/** Writes a chart of everything that the run has measured into `folder`; returns the files. */
export function writePlots(run, folder) {
  const charts = { ...checkpointCharts(run), ...peerCharts(run), ...clientCharts(run), ...growthCharts(run) };
  mkdirSync(folder, { recursive: true });
  return Object.entries(charts)
    .filter(([, chart]) => chart.series.some(({ points }) => points.length > 0))
    .map(([name, chart]) => {
      const file = path.join(folder, `${name}.svg`);
      writeFileSync(file, lineChart(chart));
      return file;
    });
}

function checkpointCharts({ checkpoints }) {
  if (!checkpoints) return {};
  const loads = [...new Set(checkpoints.rows.map(({ load }) => load))];
  const ofLoad = (load) => checkpoints.rows.filter((row) => row.load === load);
  const against = (figure) =>
    loads.map((name) => ({ name, points: ofLoad(name).map((row) => [row.intervalMs, figure(row)]) }));
  return {
    'pause-distribution': {
      title: 'How long the guest stands, interval 100 ms',
      xLabel: 'pause, ms',
      yLabel: 'share of the checkpoints',
      xLog: true,
      series: checkpoints.rows
        .filter(({ intervalMs }) => intervalMs === 100)
        .map(({ load, pauses }) => ({ name: load, points: distribution(pauses) })),
    },
    'pause-by-interval': {
      title: 'Median pause by interval',
      xLabel: 'interval, ms',
      yLabel: 'pause, ms',
      xLog: true,
      yLog: true,
      series: against(({ pauseMs }) => pauseMs.p50),
    },
    'cpu-by-interval': {
      title: 'Processor time of both agents by interval',
      xLabel: 'interval, ms',
      yLabel: 'cores',
      xLog: true,
      series: against(({ cpuShare }) => cpuShare.primary + cpuShare.secondary),
    },
  };
}

function peerCharts({ peer }) {
  if (!peer) return {};
  const nameOf = ({ side, load, ram }) => `${side}, ${load}${ram === 'private' ? ', private RAM' : ''}`;
  const names = [...new Set(peer.rows.map(nameOf))];
  const pausesOf = (name) =>
    peer.rows.filter((row) => nameOf(row) === name).flatMap(({ pauses = [] }) => pauses);
  return {
    'peer-pauses': {
      title: `colo-agent and in-tree COLO on QEMU ${peer.qemu}`,
      xLabel: 'pause, ms',
      yLabel: 'share of the checkpoints',
      xLog: true,
      series: names.map((name) => ({ name, points: distribution(pausesOf(name)) })),
    },
  };
}

function clientCharts({ client, peer, failover }) {
  // All on one QEMU where the peer's section has them all.
  const peerRows = (peer?.clientRows ?? []).filter(({ latencyDistribution }) => latencyDistribution);
  const rows = peerRows.length > 1 ? peerRows : [...(client?.rows ?? []), ...peerRows];
  return {
    'request-latency': {
      title: 'Latency of requests asked one after the other',
      xLabel: 'ms',
      yLabel: 'share of the requests',
      xLog: true,
      series: rows.map(({ mode, latencyDistribution }) => ({ name: mode, points: latencyDistribution })),
    },
    failover: {
      title: 'From kill -9 to the first new byte',
      xLabel: 'ms',
      yLabel: 'share of the failovers',
      series: ['QEMU', 'agent'].map((killed) => ({
        name: `kill of the ${killed}`,
        points: distribution(
          (failover?.rounds ?? []).filter((round) => round.killed === killed).map(({ ms }) => ms),
        ),
      })),
    },
  };
}

function growthCharts({ growth }) {
  if (!growth) return {};
  const charts = {};
  for (const [axis, { file, xLabel, x }] of Object.entries(GROWTH_AXES)) {
    const rows = growth.rows.filter((row) => row.axis === axis && row.pauseMs);
    const line = (name, y) => ({ name, points: rows.map((row) => [x(row), y(row)]) });
    const common = { xLabel, xLog: true, yLog: true };
    charts[`growth-${file}-pause`] = {
      ...common,
      title: `The engine's part of the pause against ${axis}`,
      yLabel: 'ms',
      series: [
        line('p50', ({ pauseMs }) => pauseMs.p50),
        line('p99', ({ pauseMs }) => pauseMs.p99),
        line('scan, p50', ({ scanUs }) => scanUs / 1000),
        line('copy, p50', ({ copyUs }) => copyUs / 1000),
      ],
    };
    charts[`growth-${file}-cpu`] = {
      ...common,
      title: `Processor time of all primary agents against ${axis}`,
      yLabel: 'cores',
      series: [line('all agents', ({ cpuShare }) => cpuShare)],
    };
    charts[`growth-${file}-memory`] = {
      ...common,
      title: `Memory of one primary agent against ${axis}`,
      yLabel: 'MiB',
      series: [line('an agent', ({ agentMiB }) => agentMiB)],
    };
  }
  return charts;
}
