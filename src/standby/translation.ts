/** What the translators of single options share: where things go on the standby's host, and what is to be told about it. */
import path from 'node:path';
import type { Problem } from '../vm/preflight.ts';
import { refusal } from './command.ts';
import type { Difference, PlannedDisk } from './plan.ts';

/** What the user says is another on the standby's host. */
export interface StandbyChoices {
  vm: string;
  /** For what has no place of its own: disks, sockets, logs, the pid file. */
  folder: string;
  /** Null: in the folder. */
  qmpPath: string | null;
  /** Files or block devices by the disk's id. */
  disks: ReadonlyMap<string, string>;
  /** Interfaces by the netdev's id. */
  taps: ReadonlyMap<string, string>;
  /** What -vnc is given; null: as on the primary. */
  vnc: string | null;
  /** Null: the primary's. */
  emulator: string | null;
}

/** A drive of the primary, as QMP tells. */
export interface PrimaryDrive {
  /** As colo-agent names it: the device's id, where it has one. */
  id: string;
  /** Of the -drive; empty where the device uses a -blockdev. */
  drive: string;
  node: string;
  readOnly: boolean;
  sizeBytes: number;
  /** Firmware flash: its content comes with RAM. */
  flash: boolean;
}

/** The primary as it runs. */
export interface PrimaryFacts {
  commandLine: readonly string[];
  /** What relative paths start from. */
  workingFolder: string;
  /** By which colo-agent reaches it. */
  qmpPath: string;
  /** With its version, as `pc-q35-7.2`. */
  machine: string;
  drives: readonly PrimaryDrive[];
  /** Ids of the devices that have one. */
  devices: readonly string[];
}

export class Translation {
  readonly primary: PrimaryFacts;
  readonly choices: StandbyChoices;
  readonly problems: Problem[] = [];
  readonly differences: Difference[] = [];
  readonly needed: { what: string; path: string }[] = [];
  readonly disks: PlannedDisk[] = [];
  readonly privateFolders = new Set<string>();
  readonly #taken = new Set<string>();

  constructor(primary: PrimaryFacts, choices: StandbyChoices) {
    this.primary = primary;
    this.choices = choices;
  }

  get qmpPath(): string {
    return this.choices.qmpPath ?? path.join(this.choices.folder, 'qmp');
  }

  refuse(where: string, what: string, remedy: string): void {
    this.problems.push(refusal(where, what, remedy));
  }

  /** A file that is to lie in the folder, under a name that nothing else has there. */
  place(what: string, primary: string, name = path.basename(primary)): string {
    const plain = name.replaceAll(/[^A-Za-z0-9._-]/g, '_');
    let file = path.join(this.choices.folder, plain);
    for (let number = 2; this.#taken.has(file) || file === this.qmpPath; number += 1)
      file = path.join(this.choices.folder, `${number}-${plain}`);
    this.#taken.add(file);
    this.differ(what, primary, file, null);
    return file;
  }

  differ(what: string, primary: string, standby: string, option: string | null): void {
    this.differences.push({ what, primary, standby, option });
  }

  /** The standby's QEMU starts in another folder than the primary's may have. */
  absolute(file: string): string {
    return path.resolve(this.primary.workingFolder, file);
  }

  /** A path that stays; the standby's host must have it. */
  need(what: string, file: string): string {
    const absolute = this.absolute(file);
    this.needed.push({ what, path: absolute });
    return absolute;
  }
}
