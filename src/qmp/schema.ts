import type { QmpClient } from './client.ts';
import type { SchemaEntry } from './commands.ts';

/** What this QEMU can do, by its own account: the answer of query-qmp-schema (qapi/introspect.json). */
export class QmpSchema {
  readonly #entries: Map<string, SchemaEntry>;

  constructor(entries: readonly SchemaEntry[]) {
    this.#entries = new Map(entries.map((entry) => [entry.name, entry]));
  }

  static async query(qmp: QmpClient): Promise<QmpSchema> {
    return new QmpSchema(await qmp.execute('query-qmp-schema'));
  }

  hasCommand(command: string): boolean {
    return this.#entries.get(command)?.['meta-type'] === 'command';
  }

  hasEvent(event: string): boolean {
    return this.#entries.get(event)?.['meta-type'] === 'event';
  }

  /** False, too, when there is no such command. */
  hasArgument(command: string, argument: string): boolean {
    if (!this.hasCommand(command)) return false;
    const type = this.#entries.get(this.#entries.get(command)?.['arg-type'] ?? '');
    return type?.members?.some((member) => member.name === argument) ?? false;
  }
}
