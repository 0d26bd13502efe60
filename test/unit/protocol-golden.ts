/**
 * Runs a golden conversation: a text that holds what happens (lines with `>`) and what the two machines do about it. See protocol-golden/*.txt.
 *
 *   > P start                      an event for one machine, with its words in the order of the event's fields
 *   > P stopped 1; P saved 1       several at the same moment
 *   > deliver                      every message under way arrives, until none is left
 *   > at 120                       the clock moves, and whoever wanted a tick by then gets it when he wanted it
 *   > copied                       from the start to the end of the first copy, as in pipelined.txt, unseen
 *   > copied-again                 the same without the starts
 *   > protected                    from there to the end of the first checkpoint, unseen
 *   > dead P                       from now on this machine does nothing, and nobody is told
 *   > cut                          the connection is gone; what was under way is lost, both sides learn it
 */
import type { VmRecord } from '../../src/protocol/arbiter.ts';
import type {
  PrimaryEffect,
  PrimaryEvent,
  SecondaryEffect,
  SecondaryEvent,
} from '../../src/protocol/machine.ts';
import { DEFAULT_TIMINGS } from '../../src/protocol/machine.ts';
import type { Body, Message, Mode } from '../../src/protocol/messages.ts';
import { PrimaryMachine } from '../../src/protocol/primary.ts';
import { SecondaryMachine } from '../../src/protocol/secondary.ts';

const VM_ID = '0123456789abcdef0123456789abcdef';
const TOKEN = 'feedfeedfeedfeedfeedfeedfeedfeed';
const LINEAGE = '11ea9e11ea9e11ea9e11ea9e11ea9e11';

const CONNECTED = `P peer-connected; S peer-connected; deliver; S compared; S session-opened; deliver;
  P bulk-connected; P gate-installed; P protected; deliver; P synced; S staged 0; deliver`;
const COPIED = `P start; S start; ${CONNECTED}`;
const PROTECTED = `P stopped 1; P captured 1; P saved 1; P resumed; P transmitted 1; deliver; S staged 1; deliver;
  S flushed 1; S loaded 1; deliver`;

interface Side {
  machine: PrimaryMachine | SecondaryMachine;
  inbox: Message[];
  dead: boolean;
  other: 'P' | 'S';
}

export interface GoldenOptions {
  mode: Mode;
  /** The standby takes over without asking anybody. */
  auto: boolean;
  /** Both ask a witness; the text has its answers. */
  witness: boolean;
  foreign: boolean;
  /** The primary's agent has taken the VM over itself, in `generation`. */
  tookOver: boolean;
  /** The same by a person's word. */
  forced: boolean;
  /** The primary's host has had a part in it before. */
  tookPart: boolean;
  /** The standby's witness has what HELLO says; false: the text has what it says. */
  record: boolean;
  /** The VM has a disk that is copied. */
  disks: boolean;
  generation: number;
  standbyGeneration: number;
}

export class Conversation {
  private readonly sides: Record<'P' | 'S', Side>;
  private readonly agrees: boolean;
  private nowMs = 0;
  private output: string[] = [];

  constructor(options: GoldenOptions) {
    this.agrees = options.record;
    const common = { vmId: VM_ID, timings: DEFAULT_TIMINGS };
    const primary = new PrimaryMachine({
      ...common,
      mode: options.mode,
      connections: 1,
      description: { machine: 'pc' },
      copiesDisks: options.disks,
      generation: options.generation,
      node: 'north',
      arbitration: options.witness ? 'witness' : 'none',
      tookOver: options.tookOver,
      forced: options.forced,
      tookPart: options.tookPart,
      foundClosedGate: options.foreign,
    });
    const secondary = new SecondaryMachine({
      ...common,
      generation: options.standbyGeneration,
      node: 'south',
      failover: options.witness ? 'claimed' : options.auto ? 'granted' : 'ordered',
    });
    this.sides = {
      P: { machine: primary, inbox: [], dead: false, other: 'S' },
      S: { machine: secondary, inbox: [], dead: false, other: 'P' },
    };
  }

  /** Carries out one `>` line; gives what the machines did. */
  run(line: string): string[] {
    this.output = [];
    for (const command of line.split(';')) this.command(command.trim().split(/\s+/));
    return this.output;
  }

  private command(words: string[]): void {
    const [head = '', ...rest] = words;
    if (head === 'deliver') this.deliver();
    else if (head === 'at') this.advanceTo(Number(rest[0]));
    else if (head === 'cut') this.cut();
    else if (head === 'dead') this.sides[rest[0] === 'P' ? 'P' : 'S'].dead = true;
    else if (head === 'copied') this.unseen(COPIED);
    else if (head === 'copied-again') this.unseen(CONNECTED);
    else if (head === 'protected') this.unseen(PROTECTED);
    else if (head === 'P' || head === 'S') this.event(head, rest);
    else throw new Error(`unknown command ${words.join(' ')}`);
  }

  private unseen(commands: string): void {
    const seen = this.output;
    this.run(commands);
    this.output = seen;
  }

  private deliver(): void {
    for (;;) {
      const name = (['P', 'S'] as const).find((side) => this.sides[side].inbox.length > 0);
      if (name === undefined) return;
      const message = this.sides[name].inbox.shift();
      if (message !== undefined) this.step(name, { type: 'message', message });
    }
  }

  private advanceTo(atMs: number): void {
    for (;;) {
      const wanted = (['P', 'S'] as const).map((name) => ({
        name,
        at: this.wantedMs(name),
      }));
      const next = wanted
        .filter((want): want is { name: 'P' | 'S'; at: number } => want.at !== null && want.at <= atMs)
        .sort((a, b) => a.at - b.at)[0];
      if (next === undefined) break;
      this.nowMs = Math.max(this.nowMs, next.at);
      this.step(next.name, { type: 'tick' });
    }
    this.nowMs = atMs;
  }

  private wantedMs(name: 'P' | 'S'): number | null {
    const { dead, machine } = this.sides[name];
    return dead ? null : machine.nextTimepointMs;
  }

  private cut(): void {
    for (const name of ['P', 'S'] as const) {
      this.sides[name].inbox = [];
      this.step(name, { type: 'peer-lost', reason: 'connection reset' });
    }
  }

  private event(name: 'P' | 'S', words: string[]): void {
    const [type = '', first, second] = words;
    if (type === 'message') {
      // A message that the other side would never send.
      const body = JSON.parse(words.slice(3).join(' ') || '{}') as object;
      const message: Message = {
        vmId: VM_ID,
        generation: Number(second),
        epoch: Number(first?.split('@')[1] ?? 0),
        body: {
          node: name === 'P' ? 'south' : 'north',
          arbitration: 'none',
          ...body,
          type: first?.split('@')[0],
        } as Body,
      };
      this.step(name, { type: 'message', message });
      return;
    }
    if (type === 'peer-connected' && name === 'P') {
      // What an earlier connection carried is lost with it.
      for (const side of Object.values(this.sides)) side.inbox = [];
    }
    const lineage = type === 'peer-connected' && name === 'P' ? { lineage: LINEAGE } : {};
    this.step(name, { type, ...lineage, ...fieldsOf(type, first, second, words) });
  }

  private step(name: 'P' | 'S', fields: object): void {
    const side = this.sides[name];
    if (side.dead) return;
    const event = { ...fields, nowMs: this.nowMs };
    const effects: (PrimaryEffect | SecondaryEffect)[] =
      side.machine instanceof PrimaryMachine
        ? side.machine.step(event as PrimaryEvent)
        : side.machine.step(event as SecondaryEvent);
    for (const effect of effects) {
      if (effect.type === 'read-record' && this.agrees) {
        const { generation } = this.sides.S.machine;
        this.step('S', { type: 'record-read', record: recordOf(generation, 'north') });
        continue;
      }
      if (effect.type === 'send') this.sides[side.other].inbox.push(effect.message);
      const text = describe(effect);
      if (text !== null)
        this.output.push(`${name}${effect.type === 'send' ? ` -> ${side.other}` : ''} ${text}`);
    }
  }
}

function recordOf(generation: number, primary: string): VmRecord {
  return { format: 1, generation, mode: 'alone', primary, secondary: null, claim: LINEAGE };
}

function fieldsOf(
  type: string,
  first: string | undefined,
  second: string | undefined,
  words: string[],
): object {
  const rest = (from: number) => words.slice(from).join(' ');
  switch (type) {
    case 'peer-silent':
      return { heardMs: Number(first), reason: rest(2) };
    case 'peer-lost':
    case 'peer-malformed':
    case 'vm-lost':
    case 'stream-failed':
    case 'session-failed':
    case 'promote-failed':
    case 'not-promoted':
    case 'not-settled':
    case 'settle-failed':
      return { reason: rest(1) };
    case 'record-read':
      return { record: second === undefined ? null : recordOf(Number(first), second) };
    case 'record-unread':
      return { reason: rest(1) };
    case 'superseded':
      return { generation: Number(first), reason: rest(2) };
    case 'claim-won':
      return { kind: first, generation: Number(second) };
    case 'claim-lost':
    case 'claim-unanswered':
      return { kind: first, reason: rest(2) };
    case 'stopped':
      return { epoch: Number(first), wasRunning: second !== 'already' };
    case 'stood':
      return { wasRunning: first !== 'already' };
    case 'captured':
      return { epoch: Number(first), pages: Number(second ?? 10) };
    case 'saved':
      return { epoch: Number(first), vmstateBytes: Number(second ?? 1000) };
    case 'staged':
      return { epoch: Number(first), pages: Number(second ?? 10), vmstateBytes: first === '0' ? 0 : 1000 };
    case 'transmitted':
    case 'flushed':
    case 'loaded':
      return { epoch: Number(first) };
    case 'flush-failed':
    case 'load-failed':
    case 'ram-differs':
      return { epoch: Number(first), reason: rest(2) };
    case 'step-failed':
      return { step: first, reason: rest(2) };
    case 'compared':
      return { difference: first === undefined ? null : rest(1) };
    case 'session-opened':
      return { bulkToken: TOKEN, lineages: words.slice(1).map((word) => (word === 'none' ? null : LINEAGE)) };
    case 'command':
      return { command: first };
    case 'vm-shutdown':
      return { gone: first === 'gone' };
    default:
      return {};
  }
}

function describe(effect: PrimaryEffect | SecondaryEffect): string | null {
  switch (effect.type) {
    case 'send':
      return describeMessage(effect.message);
    case 'state':
      return `is ${effect.state}: ${effect.reason}`;
    case 'connect-bulk':
      return `connect-bulk ${effect.connections}`;
    case 'compare':
      return `compare ${JSON.stringify(effect.description)}`;
    case 'claim': {
      const { kind, ...fields } = effect.claim;
      return ['claim', kind, ...Object.values(fields).map(String)].join(' ');
    }
    case 'sync-disks':
      return `sync-disks ${effect.lineages.map((lineage) => lineage ?? 'none').join(' ')}`;
    default: {
      const { type, ...fields } = effect;
      return [type, ...Object.values(fields).map(String)].join(' ');
    }
  }
}

type Constant = { lineage?: string; node?: string; arbitration?: string };

function describeMessage({ generation, epoch, body }: Message): string {
  // What is the same in every conversation, or follows from its options, is left out.
  const { type, lineage: _, node: _node, arbitration: _arbitration, ...fields } = body as Body & Constant;
  const words = Object.values(fields)
    .filter((value) => !Array.isArray(value) || value.length > 0)
    .map((value) => (typeof value === 'string' ? value : JSON.stringify(value)));
  const at = epoch > 0 ? ` ${epoch}` : '';
  return `${type.toUpperCase()}${at} (generation ${generation})${words.length > 0 ? ` ${words.join(' ')}` : ''}`;
}
