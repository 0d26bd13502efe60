/**
 * `node scripts/heartbeat-gaps.mjs [SECONDS]`: how far apart heartbeats come, for choosing --heartbeat and --peer-timeout (docs/failure-modes.md has its figures).
 * Two agents in network namespaces, a cable of 1 Gbit/s between them, a guest that writes, a checkpoint every 25 ms; first on an idle machine, then with
 * every processor busy, then with the cable full as well, and that once more without the privilege of real-time priority. Each for so many seconds (60), with
 * a peer time-out that nothing reaches.
 */
import { spawn } from 'node:child_process';
import { cpus } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { AgentLink } from '../dist/testbed/agent-link.js';
import { TestAgent } from '../dist/testbed/agents.js';
import { Cleanup } from '../dist/testbed/cleanup.js';
import { TestVm } from '../dist/testbed/vm.js';

const seconds = Number(process.argv[2] ?? 60);
const LINK_MBIT = 1000;
/** What a switch port buffers: a full cable delays everything by so much. */
const QUEUE_MS = 50;
const FLOOD_PORT = 7001;

const LISTENER = `require('net').createServer((socket) => socket.resume()).listen(${FLOOD_PORT}, process.argv[1])`;
const FLOODER = `
  const socket = require('net').connect(${FLOOD_PORT}, process.argv[1]);
  const zeros = Buffer.alloc(1 << 20);
  const write = () => { while (socket.write(zeros)); };
  socket.on('drain', write);
  socket.on('connect', write);
`;

console.log(
  '| load | side | heartbeats | gap p50 | gap p99 | longest gap | there and back p50 | p99 | longest |',
);
console.log('|---|---|---|---|---|---|---|---|---|');
for (const load of [
  { name: 'none', spinners: 0, flood: false },
  { name: 'every processor busy', spinners: cpus().length, flood: false },
  { name: 'every processor busy, the cable full', spinners: cpus().length, flood: true },
  {
    name: 'the same without real-time priority',
    spinners: cpus().length,
    flood: true,
    prefix: ['setpriv', '--bounding-set=-sys_nice'],
  },
])
  await measure(load);

async function measure({ name, spinners, flood, prefix = [] }) {
  const cleanup = new Cleanup();
  try {
    const link = cleanup.own(await AgentLink.create());
    await link.limit(LINK_MBIT, QUEUE_MS);
    const agents = await protect(cleanup, link, prefix);
    for (let i = 0; i < spinners; i++) run(cleanup, ['sh', '-c', 'while :; do :; done']);
    if (flood) {
      run(cleanup, [...link.prefix('secondary'), process.execPath, '-e', LISTENER, link.address]);
      await sleep(1000);
      run(cleanup, [...link.prefix('primary'), process.execPath, '-e', FLOODER, link.address]);
    }
    await sleep(seconds * 1000);
    for (const [side, agent] of Object.entries(agents)) console.log(row(name, side, await agent.status()));
  } finally {
    await cleanup.run();
  }
}

async function protect(cleanup, link, prefix) {
  const guest = { guest: 'linux', append: 'colo.dirty=1000,50' };
  const primaryVm = cleanup.own(await TestVm.start({ name: 'primary', ...guest }));
  await primaryVm.waitConsole('GUEST-READY', 300_000);
  const standbyVm = cleanup.own(await TestVm.start({ name: 'standby', paused: true, ...guest }));
  const start = async (side, vm, ...args) =>
    cleanup.own(
      await TestAgent.start(
        side,
        ['--vm', 'gaps', '--qmp', vm.qmpPath, '--peer-timeout', '60000', '--stall-timeout', '60000', ...args],
        {},
        [...link.prefix(side), ...prefix],
      ),
    );
  const secondary = await start('secondary', standbyVm, '--listen', `${link.address}:7000`);
  const primary = await start('primary', primaryVm, '--peer', `${link.address}:7000`, '--interval', '25');
  await primary.waitState('PROTECTED', 300_000);
  return { primary, secondary };
}

function run(cleanup, [command, ...args]) {
  const child = spawn(command, args, { stdio: ['ignore', 'ignore', 'inherit'] });
  cleanup.add(() => {
    child.kill('SIGKILL');
  });
}

function row(load, side, { heartbeat, state }) {
  const { received, gapUs, rttUs } = heartbeat;
  const ms = (us) => `${(us / 1000).toFixed(1)} ms`;
  const cells = [
    load,
    state === 'PROTECTED' || state === 'STANDBY' ? side : `${side} (${state})`,
    received,
    ...[gapUs, rttUs].flatMap(({ p50, p99, max }) => [ms(p50), ms(p99), ms(max)]),
  ];
  return `| ${cells.join(' | ')} |`;
}
