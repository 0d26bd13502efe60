/** GET of metrics and health, as a monitor does it. */
import { request } from 'node:http';

export type Where = { socketPath: string } | { host: string; port: number };

export function get(
  where: Where,
  url: string,
  accept = 'text/plain',
): Promise<{ code: number; body: string }> {
  return new Promise((resolve, reject) => {
    const asked = request({ ...where, path: url, headers: { accept } }, (response) => {
      let body = '';
      response.setEncoding('utf8');
      response.on('data', (text) => {
        body += text;
      });
      response.on('end', () => resolve({ code: response.statusCode ?? 0, body }));
    });
    asked.on('error', reject);
    asked.end();
  });
}
