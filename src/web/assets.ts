/** The files of which the page consists: a list, read once; no request names a file. */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import type { Answer } from '../http/bounded-server.ts';

/** web/ of the package, of which src/web and dist/web are equally far. */
const PAGE_FOLDER = path.join(import.meta.dirname, '..', '..', 'web');
const PAGE_FILES = [
  'index.html',
  'page.css',
  'icon.svg',
  'app.js',
  'charts.js',
  'events.js',
  'feed.js',
  'format.js',
  'spans.js',
  'takeovers.js',
  'timeline.js',
  'vms.js',
];
const PLOT_FILES = ['uPlot.esm.js', 'uPlot.min.css'];

const TYPES: Record<string, string> = {
  '.html': 'text/html; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.svg': 'image/svg+xml',
};

/** By the path of the request. Throws where the package isn't whole. */
export function readAssets(): Map<string, Answer> {
  const assets = new Map(PAGE_FILES.map((name) => [`/${name}`, asset(path.join(PAGE_FOLDER, name))]));
  const plot = path.dirname(createRequire(import.meta.url).resolve('uplot/dist/uPlot.esm.js'));
  for (const name of PLOT_FILES) assets.set(`/plot/${name}`, asset(path.join(plot, name)));
  assets.set('/', assets.get('/index.html') as Answer);
  return assets;
}

function asset(file: string): Answer {
  return {
    code: 200,
    headers: { 'Content-Type': TYPES[path.extname(file)] },
    body: readFileSync(file),
  };
}
