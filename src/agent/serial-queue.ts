/** Runs asynchronous jobs one after the other, in the order in which they came. A job that fails doesn't hold up the next. */
export class SerialQueue {
  #tail: Promise<unknown> = Promise.resolve();
  #pending = 0;

  /** Begins at once, in this very tick, when nothing is before it: the hot path costs no extra turn of the event loop. */
  run<T>(job: () => Promise<T>): Promise<T> {
    const result = this.#pending === 0 ? job() : this.#tail.then(job);
    this.#pending += 1;
    this.#tail = result.then(
      () => this.#done(),
      () => this.#done(),
    );
    return result;
  }

  #done(): void {
    this.#pending -= 1;
  }
}
