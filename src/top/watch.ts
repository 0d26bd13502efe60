/** Looks at all VMs of a daemon, or at the one of an agent, again and again. */
import { sendCommand } from '../agent/control-client.ts';
import { ControlError } from '../agent/control-server.ts';
import type { Status } from '../agent/status.ts';
import type { VmSummary } from '../daemon/vm-process.ts';
import { type Look, type Row, rowOf } from './rows.ts';

/** Who has not answered by then is shown so, and holds up nobody. */
const ANSWER_MS = 1000;

export class Watch {
  readonly #control: string;
  readonly #looks = new Map<string, Look>();
  /** Of who has not answered yet: nobody is asked twice at once. */
  readonly #asked = new Map<string, Promise<Status>>();

  constructor(control: string) {
    this.#control = control;
  }

  /** Rejects with ControlError `no-agent` when nobody answers at the socket. */
  async rows(): Promise<Row[]> {
    const looks = await this.#look();
    return looks.map((look) => {
      const before = this.#looks.get(look.vm) ?? null;
      if (look.status !== null) this.#looks.set(look.vm, look);
      return rowOf(look, before);
    });
  }

  async #look(): Promise<Look[]> {
    let vms: VmSummary[];
    try {
      vms = (await sendCommand(this.#control, 'list', {}, ANSWER_MS)) as VmSummary[];
    } catch (error) {
      if (!(error instanceof ControlError) || error.code !== 'unknown-command') throw error;
      return [lookOf((await sendCommand(this.#control, 'status', {}, ANSWER_MS)) as Status)];
    }
    return Promise.all(vms.map((vm) => this.#lookAt(vm)));
  }

  async #lookAt({ vm, role, state, reason, agentPid }: VmSummary): Promise<Look> {
    const look = { vm, atMs: performance.now(), status: null, role, state, reason };
    if (agentPid === null) return look;
    const silent = { ...look, state: 'NO ANSWER', reason: `it was ${state}: ${reason}` };
    try {
      const status = await within(ANSWER_MS, this.#ask(vm));
      return status === null ? silent : lookOf(status);
    } catch (error) {
      if (!(error instanceof ControlError)) throw error;
      // Of an agent that has ended since, or doesn't know its role yet, the daemon's word holds.
      return error.code === 'not-running' ? look : silent;
    }
  }

  #ask(vm: string): Promise<Status> {
    const pending = this.#asked.get(vm);
    if (pending !== undefined) return pending;
    const asked = sendCommand(this.#control, 'status', { vm }).finally(() =>
      this.#asked.delete(vm),
    ) as Promise<Status>;
    asked.catch(() => {}); // nobody may be waiting any more; who is, hears of it
    this.#asked.set(vm, asked);
    return asked;
  }
}

function lookOf(status: Status): Look {
  const { vm, role, state, reason } = status;
  return { vm, atMs: performance.now(), status, role, state, reason };
}

/** Null: not by then. */
async function within<T>(ms: number, work: Promise<T>): Promise<T | null> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<null>((resolve) => {
    timer = setTimeout(() => resolve(null), ms);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}
