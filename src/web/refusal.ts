/** The only two pages that need no session: they tell nothing of the VMs. */
import { createHash } from 'node:crypto';
import type { Answer } from '../http/bounded-server.ts';

const STYLE =
  'body{font:1.1rem/1.5 system-ui,sans-serif;max-width:40rem;margin:12vh auto;padding:0 1rem}code{font-size:1.1em}';

/** For Content-Security-Policy: no other style in a page is believed. */
export const STYLE_HASH = `sha256-${createHash('sha256').update(STYLE).digest('base64')}`;

export function refusedPage(): Answer {
  return page(
    401,
    'colo-agent: not logged in',
    '',
    `<h1>A link is needed</h1>
<p>On the host of this agent, as root or as a member of its <code>control-group</code>, run</p>
<pre><code>colo-agent web</code></pre>
<p>and open the link that it prints. It is good once, for two minutes; after that this browser may look for twelve hours.</p>`,
  );
}

/**
 * Not a redirection: who comes by a link on another site's page would not bring a cookie that is SameSite=Strict. This page's own step to the next one does.
 */
export function enteredPage(cookie: string): Answer {
  const answer = page(
    200,
    'colo-agent',
    '<meta http-equiv="refresh" content="0;url=/">',
    '<p><a href="/">The virtual machines of this host</a></p>',
  );
  return { ...answer, headers: { ...answer.headers, 'Set-Cookie': cookie } };
}

function page(code: number, title: string, head: string, body: string): Answer {
  return {
    code,
    headers: { 'Content-Type': 'text/html; charset=utf-8' },
    body: `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
${head}
<link rel="icon" href="/icon.svg">
<title>${title}</title>
<style>${STYLE}</style>
</head>
<body>
<main>
${body}
</main>
</body>
</html>
`,
  };
}
