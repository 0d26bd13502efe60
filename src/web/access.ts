/**
 * Who may look. Whoever may open the control socket asks there for a link; its token is good once, for a short time, and is exchanged for a session, which the
 * browser shows as a cookie. Tokens are kept as their digests: what lies in memory opens nothing.
 */
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';

const TOKEN_BYTES = 32;
const LINK_MS = 120_000;
export const SESSION_MS = 12 * 3_600_000;
/** When there are more the oldest goes. */
const LINKS_MAX = 16;
const SESSIONS_MAX = 64;

export class Access {
  readonly #links = new Tokens(LINK_MS, LINKS_MAX);
  readonly #sessions = new Tokens(SESSION_MS, SESSIONS_MAX);

  /** The token of a new link. */
  link(nowMs: number): string {
    return this.#links.issue(nowMs);
  }

  /** The token of a new session for that of a link, which is worth nothing from then on; null: it was worth nothing. */
  enter(linkToken: string, nowMs: number): string | null {
    return this.#links.take(linkToken, nowMs) ? this.#sessions.issue(nowMs) : null;
  }

  mayLook(sessionToken: string, nowMs: number): boolean {
    return this.#sessions.has(sessionToken, nowMs);
  }
}

class Tokens {
  readonly #lifeMs: number;
  readonly #max: number;
  /** The oldest first. */
  #issued: { digest: Buffer; endsMs: number }[] = [];

  constructor(lifeMs: number, max: number) {
    this.#lifeMs = lifeMs;
    this.#max = max;
  }

  issue(nowMs: number): string {
    const token = randomBytes(TOKEN_BYTES).toString('base64url');
    this.#issued.push({ digest: digestOf(token), endsMs: nowMs + this.#lifeMs });
    if (this.#issued.length > this.#max) this.#issued.shift();
    return token;
  }

  has(token: string, nowMs: number): boolean {
    return this.#place(token, nowMs) >= 0;
  }

  take(token: string, nowMs: number): boolean {
    const place = this.#place(token, nowMs);
    if (place >= 0) this.#issued.splice(place, 1);
    return place >= 0;
  }

  /** All are compared, each in constant time: how long it takes tells nothing. */
  #place(token: string, nowMs: number): number {
    this.#issued = this.#issued.filter(({ endsMs }) => nowMs < endsMs);
    const digest = digestOf(token);
    let place = -1;
    for (const [index, issued] of this.#issued.entries())
      if (timingSafeEqual(issued.digest, digest)) place = index;
    return place;
  }
}

function digestOf(token: string): Buffer {
  return createHash('sha256').update(token).digest();
}
