/** The set-up that is looked at: what several checks need is found out once, when the first of them asks for it. */

import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { sendCommand } from '../agent/control-client.ts';
import { vmsOf } from '../agent/credential-files.ts';
import { CREDENTIAL_FILES, openCredentials, type TlsCredentials } from '../agent/link-security.ts';
import { Log } from '../agent/log.ts';
import type { Status } from '../agent/status.ts';
import { QmpClient } from '../qmp/client.ts';
import { describeVm, type VmDescription } from '../vm/description.ts';
import { HostProcess } from '../vm/host-process.ts';
import type { Examined } from '../vm/preflight.ts';
import { findRamBlocks, type RamBlock } from '../vm/ram-blocks.ts';
import { AGENT_HAS_MONITOR, type CheckName, NotAsked, needs } from './finding.ts';
import type { DoctorOptions, Role } from './options.ts';
import { selfPortrait } from './portrait.ts';
import { Reception } from './reception.ts';
import { Visit } from './visit.ts';

/** For credentials that are for every VM. */
const ANY_VM = 'any';

export class Patient {
  readonly options: DoctorOptions;
  readonly #found = new Map<string, Promise<unknown>>();
  #qmp: QmpClient | null = null;
  #visit: Visit | null = null;
  #reception: Reception | null = null;

  constructor(options: DoctorOptions) {
    this.options = options;
  }

  /** Everything but the reception, which answers on until it is closed by itself. */
  close(): void {
    this.#qmp?.close();
    this.#visit?.close();
  }

  get reception(): Reception | null {
    return this.#reception;
  }

  /** Rejects as an agent's attempt to attach would. */
  connectQmp(): Promise<QmpClient> {
    return this.#once('qmp', async () => {
      const { qmpPath, agentHasMonitor } = this.options;
      if (qmpPath === null && this.options.domain !== null) throw new NotAsked(needs('libvirt'));
      if (qmpPath === null) throw new NotAsked('no VM was named (--qmp)');
      if (agentHasMonitor && (await this.agent()) !== null) throw new NotAsked(AGENT_HAS_MONITOR);
      this.#qmp = await QmpClient.connect(qmpPath);
      return this.#qmp;
    });
  }

  /** For the checks that come after `qmp`. Rejects with NotAsked when that has failed. */
  async vm(): Promise<Examined> {
    const qmp = await this.#needs('qmp', () => this.connectQmp());
    return { qmp, process: new HostProcess(qmp.peer.pid), exceptions: this.options.exceptions };
  }

  /** What the VM is, or is to be, on this host. */
  async role(): Promise<Role> {
    const { role, peer, listen } = this.options;
    if (role !== null) return role;
    if ((peer === null) !== (listen === null)) return peer === null ? 'secondary' : 'primary';
    const { qmp } = await this.vm();
    // Before its first `cont`, which a standby never gets from anybody but its agent.
    return (await qmp.execute('query-status')).status === 'prelaunch' ? 'secondary' : 'primary';
  }

  /** For the checks that come after `ptrace`. */
  knownBlocks(): Promise<RamBlock[]> {
    return this.#needs('ptrace', () => this.blocks());
  }

  /** Rejects as an agent's attempt to attach would. */
  blocks(): Promise<RamBlock[]> {
    return this.#once('blocks', async () => {
      const { qmp } = await this.vm();
      return findRamBlocks(qmp, qmp.peer.pid);
    });
  }

  /** As HELLO carries it, but for the sections of the device state, for which a VM that runs would have to be stopped. */
  description(): Promise<VmDescription> {
    return this.#once('description', async () => {
      const { qmp } = await this.vm();
      const { exceptions, diskBufferBytes: bufferBytes } = this.options;
      const disks = { ...exceptions, owner: null, bufferBytes };
      return describeVm(qmp, qmp.peer.pid, await this.knownBlocks(), null, disks);
    });
  }

  /** Null: plain text. Rejects as an agent's start would. */
  credentials(): Promise<TlsCredentials | null> {
    return this.#once('keys', async () => {
      const { tls, vm } = this.options;
      if (tls === null) return null;
      const silent = new Log(
        'error',
        () => ({}),
        () => {},
      );
      return openCredentials({ vm: vm ?? vmOf(tls.folder), ...tls }, silent);
    });
  }

  /** A connection to whoever listens at the peer's. Rejects as an agent's attempt would. */
  visit(): Promise<Visit> {
    return this.#once('peer', async () => {
      const { peer } = this.options;
      if (peer === null) throw new NotAsked('no peer was named (--peer)');
      const credentials = await this.#needs('keys', () => this.credentials());
      this.#visit = await Visit.pay(peer, credentials);
      return this.#visit;
    });
  }

  /** For the checks that need a doctor at the other end. Rejects with NotAsked when there is none. */
  async consulted(): Promise<Visit> {
    const visit = await this.#needs('peer', () => this.visit());
    if (visit.portrait === null) {
      throw new NotAsked(
        'no doctor answers at the peer: run `colo-agent doctor --listen HOST:PORT` there and give its address to --peer here',
      );
    }
    return visit;
  }

  /** Of the agent that runs for this VM here, and where it answers; null: none does. */
  agent(): Promise<{ at: string; status: Status } | null> {
    return this.#once('agent', async () => {
      for (const role of ['primary', 'secondary'] as const) {
        const at = this.options.controlPath(role);
        const status = at === null ? null : await sendCommand(at, 'status').catch(() => null);
        if (at !== null && status !== null) return { at, status: status as Status };
      }
      return null;
    });
  }

  /** Answers the other host's doctor from here on. Rejects as an agent that can't listen would. */
  async receive(): Promise<Reception> {
    const { listen, version } = this.options;
    if (listen === null) throw new NotAsked('nobody is to be answered (--listen)');
    const credentials = await this.#needs('keys', () => this.credentials());
    const description = await this.description().catch(() => null);
    const role = await this.role().catch(() => null);
    const portrait = await selfPortrait({ version, role, description });
    this.#reception = new Reception(listen, credentials, portrait);
    return this.#reception;
  }

  /** What the check `name` has failed to get isn't told again. */
  async #needs<T>(name: CheckName, need: () => Promise<T>): Promise<T> {
    try {
      return await need();
    } catch (error) {
      throw error instanceof NotAsked ? error : new NotAsked(needs(name));
    }
  }

  #once<T>(what: string, find: () => Promise<T>): Promise<T> {
    const finding = this.#found.get(what) ?? find();
    this.#found.set(what, finding);
    return finding as Promise<T>;
  }
}

/** A VM that our certificate is for. What can't be read is told by who opens the credentials. */
function vmOf(folder: string): string {
  try {
    const certificate = new X509Certificate(readFileSync(path.join(folder, CREDENTIAL_FILES.certificate)));
    return vmsOf(certificate).find((vm) => vm !== '*') ?? ANY_VM;
  } catch {
    return ANY_VM;
  }
}
