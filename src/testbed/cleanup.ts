/** What has to be undone at the end, in reverse order, all of it even when some of it fails. */
export class Cleanup {
  readonly #actions: (() => void | Promise<void>)[] = [];

  add(action: () => void | Promise<void>): void {
    this.#actions.push(action);
  }

  /** Registers `resource.destroy()` and returns the resource. */
  own<T extends { destroy(): void | Promise<void> }>(resource: T): T {
    this.add(() => resource.destroy());
    return resource;
  }

  /** Throws an AggregateError of everything that failed. A second run finds nothing to do. */
  async run(): Promise<void> {
    const errors: unknown[] = [];
    for (let action = this.#actions.pop(); action; action = this.#actions.pop()) {
      try {
        await action();
      } catch (error) {
        errors.push(error);
      }
    }
    if (errors.length > 0) throw new AggregateError(errors, `cleaning up failed: ${errors.join('; ')}`);
  }
}
