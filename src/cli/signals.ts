/** Ends in order at the first SIGTERM or SIGINT, at once at the second. */
export function onTerminationSignal(end: () => void): void {
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.once(signal, () => {
      end();
      process.once(signal, () => process.exit(1));
    });
  }
}
