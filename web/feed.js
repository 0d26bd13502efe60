/** Asks the server again and again, and says what has come, or why nothing comes. */

/** @typedef {import('../src/web/shown.ts').Shown} Shown */

const EVERY_MS = 2000;
/** Nobody sees it; but its title may call. */
const HIDDEN_EVERY_MS = 10_000;
const PATIENCE_MS = 8000;

/**
 * @param {() => string} url
 * @param {{ onShown(shown: Shown): void, onAway(reason: string): void, onRefused(): void }} told
 */
export function follow(url, told) {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  let asking = false;
  let ended = false;

  async function ask() {
    clearTimeout(timer);
    if (asking || ended) return;
    asking = true;
    /** @type {Shown | null} */
    let shown = null;
    try {
      const answer = await fetch(url(), { signal: AbortSignal.timeout(PATIENCE_MS) });
      if (answer.status === 401) {
        ended = true;
        told.onRefused();
        return;
      }
      if (!answer.ok) throw new Error(await answer.text());
      shown = await answer.json();
    } catch (error) {
      told.onAway(error instanceof Error ? error.message : String(error));
    } finally {
      asking = false;
    }
    timer = setTimeout(ask, document.hidden ? HIDDEN_EVERY_MS : EVERY_MS);
    // Outside: a fault of this page is no silence of the daemon.
    if (shown !== null) told.onShown(shown);
  }

  document.addEventListener('visibilitychange', ask);
  void ask();
  return ask;
}
