import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    projects: [
      {
        test: { name: 'unit', include: ['test/unit/**/*.test.ts'], testTimeout: 30_000, hookTimeout: 30_000 },
      },
      { test: { name: 'fuzz', include: ['test/fuzz/**/*.test.ts'], testTimeout: 60_000 } },
      { test: { name: 'sim', include: ['test/sim/**/*.test.ts'], testTimeout: 300_000 } },
      {
        test: {
          name: 'e2e',
          include: ['test/e2e/**/*.test.ts'],
          // Real guests under software emulation on as few as two cores: three files at a time, each of which waits for more than half of its time, and generous limits.
          maxWorkers: 3,
          testTimeout: 300_000,
          hookTimeout: 180_000,
          bail: 0,
        },
      },
      {
        test: {
          name: 'pacemaker',
          include: ['test/pacemaker/**/*.test.ts'],
          testTimeout: 300_000,
          hookTimeout: 300_000,
        },
      },
      { test: { name: 'chaos', include: ['test/chaos/**/*.test.ts'], fileParallelism: false } },
    ],
  },
});
