/**
 * The pause guard's process (pause-guard.ts): `pause-guard-main.js QEMU-PID`, with the agent's end of a pipe as standard input, the flag as descriptor 3
 * and the agent's QMP connection as descriptor 4. It touches the connection only when the agent has died and the VM stands because of it.
 */
import { readSync } from 'node:fs';
import { Socket } from 'node:net';
import { Log } from './log.ts';
import { wakeInterrupts } from './wake-interrupts.ts';

const FLAG_FD = 3;
const QMP_FD = 4;
const COMMAND_ID = 'colo-pause-guard';
const SLOW_ANSWER_MS = 30_000;

const qemuPid = Number(process.argv[2]);
const log = new Log('info', () => ({ role: 'pause-guard', qemuPid }));

// Whoever ends the agent's process group or unit in order means the agent; this process ends right after it.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => {});
process.stdin.resume();
process.stdin.once('close', () => {
  if (vmStands()) resume();
  else process.exit(0);
});

function vmStands(): boolean {
  const flag = new Uint8Array(1);
  return readSync(FLAG_FD, flag, 0, 1, 0) === 1 && flag[0] === 1;
}

function resume(): void {
  const qmp = new Socket({ fd: QMP_FD, readable: true, writable: true });
  let received = '';
  qmp.on('data', (chunk: Buffer) => {
    received += chunk.toString('latin1');
    const answer = received.split('\n').find((line) => line.includes(COMMAND_ID));
    if (answer !== undefined) answered(answer);
  });
  qmp.on('error', () => process.exit(1)); // QEMU has ended, too
  qmp.on('close', () => process.exit(1));
  // However long it takes: QEMU, which may be waiting for its storage, drops a command that it hasn't begun when the connection ends (monitor/qmp.c).
  setTimeout(() => {
    log.error('the agent died while the VM stood, and QEMU has not answered `cont` yet');
  }, SLOW_ANSWER_MS);
  qmp.write(`${JSON.stringify({ execute: 'cont', id: COMMAND_ID })}\n`);
}

function answered(line: string): void {
  if (line.includes('"error"')) {
    log.error('the agent died while the VM stood, and QEMU refused `cont`', { answer: line.trim() });
    process.exit(1);
  }
  wakeInterrupts(qemuPid, log);
  log.warn('the agent died while the VM stood for it; the VM goes on');
  process.exit(0);
}
