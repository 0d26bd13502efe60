import { checksOfReason, hint } from '../doctor/hints.ts';

/** Of a status, or of what a daemon says; the copy's figures while there is one. */
export interface Progress {
  state: string;
  reason: string;
  syncPercent?: number | null;
  syncSecondsLeft?: number | null;
}

const REFRESH_MS = 500;

/** Shows the state on a terminal while the first copy runs, and each change of state; JSON lines when asked for; nothing otherwise. */
export function showProgress(progress: () => Progress, json: boolean): { end(): void } {
  const terminal = process.stderr.isTTY && !json;
  if (!terminal && !json) return { end: () => {} };
  let lastState = '';
  let lineOpen = false;
  const endLine = () => {
    if (lineOpen) process.stderr.write('\n');
    lineOpen = false;
  };
  const timer = setInterval(() => {
    const { state, reason, syncPercent = null, syncSecondsLeft = null } = progress();
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
