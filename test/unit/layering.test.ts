/** Who may import whom. The picture is in docs/architecture.md; this keeps it true. */
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, test } from 'vitest';

const root = path.join(import.meta.dirname, '..', '..');

const ALLOWED: Record<string, string[]> = {
  protocol: [],
  native: [],
  qmp: ['native'],
  vm: ['qmp', 'native'],
  standby: ['qmp', 'vm', 'native'],
  libvirt: ['vm'],
  witness: [],
  agent: ['protocol', 'qmp', 'vm', 'witness', 'native'],
  doctor: ['agent', 'libvirt', 'protocol', 'qmp', 'vm', 'native'],
  http: ['agent'],
  web: ['agent', 'http', 'metrics'],
  daemon: ['agent', 'http', 'libvirt', 'metrics', 'qmp', 'web'],
  testbed: ['agent', 'qmp', 'native'],
  metrics: ['agent', 'http', 'protocol', 'native'],
  top: ['agent', 'daemon'],
  demo: ['testbed', 'agent'],
  cli: [
    'daemon',
    'demo',
    'testbed',
    'web',
    'doctor',
    'http',
    'metrics',
    'agent',
    'protocol',
    'witness',
    'standby',
    'top',
    'libvirt',
    'vm',
  ],
};

/** The protocol is pure: not even Node's own modules, but for what hashes a name. */
const PROTOCOL_NODE_MODULES = ['node:crypto'];

function sources(folder: string, pattern: RegExp): string[] {
  return readdirSync(path.join(root, folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => pattern.test(name))
    .map((name) => path.join(folder, name));
}

function importsOf(file: string): string[] {
  const text = readFileSync(path.join(root, file), 'utf8');
  return [...text.matchAll(/(?:from|import)\s+'([^']+)'|import\('([^']+)'\)/g)].map(
    (match) => (match[1] ?? match[2]) as string,
  );
}

function layerOf(file: string): string {
  return path.relative('src', file).split(path.sep)[0] as string;
}

const files = sources('src', /\.ts$/);

describe('layers', () => {
  test('every folder of src has its rule', () => {
    expect([...new Set(files.map(layerOf))].filter((layer) => !(layer in ALLOWED))).toEqual([]);
  });

  test.each(files)('%s imports only what its layer may', (file) => {
    const layer = layerOf(file);
    const foreign = importsOf(file)
      .filter((name) => name.startsWith('.'))
      .map((name) => layerOf(path.join(path.dirname(file), name)))
      .filter((other) => other !== layer && !ALLOWED[layer]?.includes(other));
    expect(foreign).toEqual([]);
  });

  test('the protocol does no I/O and knows no clock', () => {
    for (const file of files.filter((name) => layerOf(name) === 'protocol')) {
      const modules = importsOf(file).filter(
        (name) => !name.startsWith('.') && !PROTOCOL_NODE_MODULES.includes(name),
      );
      expect(modules, file).toEqual([]);
      expect(readFileSync(path.join(root, file), 'utf8'), file).not.toMatch(
        /\b(Date\.now|performance\.\w|setTimeout|setInterval|process\.\w)/,
      );
    }
  });

  test('the native core knows no Node, and nothing of the addon', () => {
    for (const file of sources('native/core', /\.(h|cc)$/)) {
      expect(readFileSync(path.join(root, file), 'utf8'), file).not.toMatch(
        /#include\s+["<](napi|node_api|node|v8|uv|addon\/|\.\.\/addon)/,
      );
    }
  });

  test('no protection can come to the probe, which write-protects pages while the guest runs (invariant 5)', () => {
    const users = [...files, ...sources('native/core', /\.(h|cc)$/)].filter((file) =>
      /DirtyRateProbe|dirty_rate_probe\.h/.test(readFileSync(path.join(root, file), 'utf8')),
    );
    expect(users.sort()).toEqual([
      'native/core/dirty_rate_probe.cc',
      'native/core/dirty_rate_probe.h',
      'src/agent/estimate.ts',
      'src/native/binding.ts',
    ]);
    const estimate = files.filter((file) => importsOf(file).some((name) => name.endsWith('/estimate.ts')));
    expect(estimate.map(layerOf).filter((layer) => layer !== 'cli')).toEqual([]);
  });

  test('no source file is over 500 lines', () => {
    const all = [
      ...files,
      ...sources('native', /\.(h|cc)$/),
      ...sources('test', /\.ts$/),
      ...sources('web', /\.(js|css|html)$/),
      ...sources('guest', /\.(c|S|h)$/),
    ];
    const long = all.filter((file) => readFileSync(path.join(root, file), 'utf8').split('\n').length > 501);
    expect(long).toEqual([]);
  });
});
