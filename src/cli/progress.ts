import type { Status } from '../agent/status.ts';
import { checksOfReason, hint } from '../doctor/hints.ts';

const REFRESH_MS = 500;
const NO_COPY = { syncPercent: null, syncSecondsLeft: null };

/** Shows the state on a terminal while the first copy runs, and each change of state; JSON lines when asked for; nothing otherwise. */
export function showProgress(status: () => Status, json: boolean): { end(): void } {
  const terminal = process.stderr.isTTY && !json;
  if (!terminal && !json) return { end: () => {} };
  let lastState = '';
  let lineOpen = false;
  const endLine = () => {
    if (lineOpen) process.stderr.write('\n');
    lineOpen = false;
  };
  const timer = setInterval(() => {
    const current = status();
    const { state, reason } = current;
    const { syncPercent, syncSecondsLeft } = 'syncPercent' in current ? current : NO_COPY;
    if (terminal && state === 'SYNCING' && syncPercent !== null) {
      process.stderr.write(
        `\r\x1b[Kfirst copy ${syncPercent} %${syncSecondsLeft === null ? '' : `, ${syncSecondsLeft} s left`}`,
      );
      lineOpen = true;
    }
    if (state === lastState) return;
    lastState = state;
    endLine();
    if (json) process.stdout.write(`${JSON.stringify({ state, reason })}\n`);
    else process.stderr.write(`${state}: ${reason}${hint(checksOfReason(reason))}\n`);
  }, REFRESH_MS);
  timer.unref();
  return {
    end() {
      clearInterval(timer);
      endLine();
    },
  };
}
