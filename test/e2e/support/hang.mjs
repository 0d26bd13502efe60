/**
 * Loaded into an agent by NODE_OPTIONS=--import, since no such thing belongs into the agent itself: SIGUSR2 makes its event loop stand still for
 * COLO_TEST_HANG_MS, while its other threads run.
 */
process.on('SIGUSR2', () => {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, Number(process.env['COLO_TEST_HANG_MS']));
});
