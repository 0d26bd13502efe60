import type { Format } from './exposition.ts';

/** What a scraper that sends this Accept header is answered in: OpenMetrics when it likes that at least as much as Prometheus' own format, which is for everybody else. */
export function formatFor(accept: string | undefined): Format {
  let openmetrics = 0;
  let text = 0;
  for (const range of (accept ?? '').split(',')) {
    const [type = '', ...parameters] = range.split(';').map((part) => part.trim().toLowerCase());
    const value = new Map(parameters.map((parameter) => parameter.split('=', 2) as [string, string]));
    const quality = qualityOf(value.get('q'));
    const version = value.get('version');
    if (type === 'application/openmetrics-text' && (version === undefined || version === '1.0.0'))
      openmetrics = Math.max(openmetrics, quality);
    if (type === 'text/plain') text = Math.max(text, quality);
  }
  return openmetrics > 0 && openmetrics >= text ? 'openmetrics' : 'text';
}

function qualityOf(text: string | undefined): number {
  const quality = Number(text ?? '1');
  return quality >= 0 && quality <= 1 ? quality : 0;
}
