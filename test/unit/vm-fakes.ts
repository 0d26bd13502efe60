/** A QMP client and a /proc that answer what a test says. */
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { onTestFinished } from 'vitest';
import type { QmpClient } from '../../src/qmp/client.ts';
import { QmpError } from '../../src/qmp/error.ts';
import { HostProcess } from '../../src/vm/host-process.ts';

type Arguments = Record<string, unknown>;
export type Answer = unknown | ((args: Arguments) => unknown);

/** Records every command; an answer that is an Error is thrown. HMP commands are looked up by their whole line. */
export class FakeQmp {
  readonly calls: string[] = [];
  readonly answers: Record<string, Answer>;

  constructor(answers: Record<string, Answer>) {
    this.answers = answers;
  }

  get client(): QmpClient {
    return this as unknown as QmpClient;
  }

  async execute(name: string, args: Arguments = {}): Promise<unknown> {
    const key = name === 'human-monitor-command' ? String(args['command-line']) : name;
    this.calls.push([key, args['id'] ?? args['fdname']].filter((part) => part !== undefined).join(' '));
    if (!(key in this.answers))
      throw new QmpError('CommandNotFound', `The command ${key} has not been found`, key);
    const answer = this.answers[key];
    const value = typeof answer === 'function' ? (answer as (args: Arguments) => unknown)(args) : answer;
    if (value instanceof Error) throw value;
    return value;
  }

  async executeAll(calls: [string, Arguments?][]): Promise<unknown[]> {
    return Promise.all(calls.map(([name, args]) => this.execute(name, args)));
  }
}

export interface ProcFiles {
  commandLine?: string[];
  maps?: string;
  openFiles?: string[];
}

/** Lives until the test that calls this ends. */
export function fakeProcess({ commandLine = ['qemu'], maps = '', openFiles = [] }: ProcFiles): HostProcess {
  const proc = mkdtempSync(path.join(tmpdir(), 'colo-proc-'));
  onTestFinished(() => rmSync(proc, { recursive: true }));
  const folder = path.join(proc, '1');
  mkdirSync(path.join(folder, 'fd'), { recursive: true });
  writeFileSync(path.join(folder, 'cmdline'), commandLine.map((word) => `${word}\0`).join(''));
  writeFileSync(path.join(folder, 'maps'), maps);
  for (const [fd, target] of openFiles.entries()) symlinkSync(target, path.join(folder, 'fd', String(fd)));
  return new HostProcess(1, proc);
}
