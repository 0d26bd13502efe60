/** Chromium without a window, driven by its own protocol (DevTools) over a pipe. */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { waitFor } from '../../../src/testbed/wait.ts';

type Fields = Record<string, unknown>;

/** In Debian, and in Fedora. */
const PROGRAMS = ['chromium', 'chromium-browser'];

interface Message {
  id?: number;
  method?: string;
  params?: Fields;
  sessionId?: string;
  result?: Fields;
  error?: { message: string };
}

interface Waiting {
  resolve: (result: Fields) => void;
  reject: (error: Error) => void;
}

export class Browser {
  readonly #child: ChildProcess;
  readonly #profile: string;
  readonly #waiting = new Map<number, Waiting>();
  readonly #pages = new Map<string, Page>();
  #lastId = 0;
  #rest = '';

  static async start(): Promise<Browser> {
    const folders = (process.env['PATH'] ?? '').split(':');
    const program = PROGRAMS.find((name) => folders.some((folder) => existsSync(path.join(folder, name))));
    if (program === undefined)
      throw new Error(`none of ${PROGRAMS.join(', ')} is in the PATH: install chromium`);
    const browser = new Browser(program);
    await browser.send('Browser.getVersion', {});
    return browser;
  }

  private constructor(program: string) {
    this.#profile = mkdtempSync(path.join(tmpdir(), 'colo-browser-'));
    const flags = [
      '--headless',
      '--no-sandbox', // which can't be had as root; the only pages are ours
      '--disable-gpu',
      '--disable-dev-shm-usage',
      '--disable-background-networking',
      '--no-first-run',
      '--hide-scrollbars',
      '--remote-debugging-pipe',
      `--user-data-dir=${this.#profile}`,
    ];
    this.#child = spawn(program, flags, {
      detached: true,
      stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'],
    });
    this.#child.on('error', (error) => this.#fail(error));
    this.#child.on('exit', (code, signal) => this.#fail(new Error(`${program} ended: ${code ?? signal}`)));
    const from = this.#child.stdio[4] as Readable;
    from.setEncoding('utf8');
    from.on('data', (text: string) => this.#hear(text));
  }

  async page(): Promise<Page> {
    const { targetId } = await this.send('Target.createTarget', {
      url: 'about:blank',
      newWindow: true, // nobody is hidden behind another, and slow for that
    });
    const { sessionId } = await this.send('Target.attachToTarget', { targetId, flatten: true });
    const page = new Page((method, params) => this.send(method, params, String(sessionId)));
    this.#pages.set(String(sessionId), page);
    await page.begin();
    return page;
  }

  send(method: string, params: Fields, sessionId?: string): Promise<Fields> {
    const id = ++this.#lastId;
    const answer = new Promise<Fields>((resolve, reject) => this.#waiting.set(id, { resolve, reject }));
    const message = { id, method, params, ...(sessionId === undefined ? {} : { sessionId }) };
    (this.#child.stdio[3] as Writable).write(`${JSON.stringify(message)}\0`);
    return answer;
  }

  async destroy(): Promise<void> {
    const ended = new Promise((resolve) => this.#child.once('exit', resolve));
    // With all the processes that it has made: they would go on writing into the profile.
    if (this.#child.exitCode === null && this.#child.pid !== undefined) {
      process.kill(-this.#child.pid, 'SIGKILL');
      await ended;
    }
    rmSync(this.#profile, { recursive: true, force: true, maxRetries: 10 });
  }

  #hear(text: string): void {
    const messages = (this.#rest + text).split('\0');
    this.#rest = messages.pop() ?? '';
    for (const message of messages) this.#take(JSON.parse(message) as Message);
  }

  #take({ id, method, params, sessionId, result, error }: Message): void {
    if (id === undefined) {
      this.#pages.get(sessionId ?? '')?.hear(method ?? '', params ?? {});
      return;
    }
    const waiting = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (error) waiting?.reject(new Error(error.message));
    else waiting?.resolve(result ?? {});
  }

  #fail(error: Error): void {
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }
}

export class Page {
  readonly #send: (method: string, params: Fields) => Promise<Fields>;
  /** What the console has of warnings and errors, violations of the Content-Security-Policy among them. */
  readonly complaints: string[] = [];

  constructor(send: (method: string, params: Fields) => Promise<Fields>) {
    this.#send = send;
  }

  async begin(): Promise<void> {
    for (const domain of ['Page', 'Runtime', 'Log', 'Audits']) await this.#send(`${domain}.enable`, {});
  }

  hear(method: string, params: Fields): void {
    const { type, entry, issue } = params as {
      type?: string;
      entry?: { level: string; text: string; url?: string };
      issue?: { code: string };
    };
    if (method === 'Runtime.exceptionThrown') this.complaints.push(JSON.stringify(params));
    if (method === 'Runtime.consoleAPICalled' && (type === 'error' || type === 'warning'))
      this.complaints.push(JSON.stringify(params));
    if (method === 'Log.entryAdded' && entry && ['error', 'warning'].includes(entry.level))
      this.complaints.push(`${entry.text} ${entry.url ?? ''}`);
    if (method === 'Audits.issueAdded' && issue?.code === 'ContentSecurityPolicyIssue')
      this.complaints.push(JSON.stringify(issue));
  }

  async open(url: string): Promise<void> {
    const { errorText } = await this.#send('Page.navigate', { url });
    if (errorText) throw new Error(`${url}: ${errorText}`);
  }

  /** The value of an expression in the page. */
  async value<T>(expression: string): Promise<T> {
    const answer = await this.#send('Runtime.evaluate', {
      expression,
      returnByValue: true,
      awaitPromise: true,
    });
    const { result, exceptionDetails } = answer as {
      result: { value: T };
      exceptionDetails?: { text: string; exception?: { description?: string } };
    };
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  }

  /** Until the expression is true; the text of the page is told when it never is. */
  async waitUntil(what: string, expression: string, timeoutMs = 60_000): Promise<void> {
    let text = '';
    await waitFor(
      what,
      timeoutMs,
      async () => {
        // In the middle of a step to another page there is nothing to ask.
        text = await this.value<string>('document.body?.innerText ?? ""').catch(() => '');
        return this.value<boolean>(`Boolean(${expression})`).catch(() => false);
      },
      () => `; the page says:\n${text.slice(0, 4000)}\n${this.complaints.join('\n')}`,
    );
  }

  async forgetCookies(): Promise<void> {
    await this.#send('Network.clearBrowserCookies', {});
  }

  async look({
    width,
    height,
    dark = false,
  }: {
    width: number;
    height: number;
    dark?: boolean;
  }): Promise<void> {
    await this.#send('Emulation.setDeviceMetricsOverride', {
      width,
      height,
      deviceScaleFactor: 1,
      mobile: width < 500,
    });
    await this.#send('Emulation.setEmulatedMedia', {
      features: [{ name: 'prefers-color-scheme', value: dark ? 'dark' : 'light' }],
    });
  }

  /** The whole page, however long, as a PNG. */
  async screenshot(file: string): Promise<void> {
    const { data } = await this.#send('Page.captureScreenshot', {
      format: 'png',
      captureBeyondViewport: true,
    });
    writeFileSync(file, Buffer.from(String(data), 'base64'));
  }
}
