/** Puts what the server tells into the page. */
import { Charts } from './charts.js';
import { EventTable } from './events.js';
import { follow } from './feed.js';
import { clock } from './format.js';
import { TakeOvers } from './takeovers.js';
import { Timeline } from './timeline.js';
import { kindOf, VmTable, write } from './vms.js';

/** @typedef {import('../src/web/shown.ts').Shown} Shown */
/** @typedef {import('../src/web/shown.ts').ShownVm} ShownVm */
/** @typedef {import('../src/web/shown.ts').ShownEvent} ShownEvent */

const WINDOW_MS = 900_000;
const EVENTS_MAX = 1000;

const vmTable = new VmTable(/** @type {HTMLTableElement} */ (byId('vms')));
const eventTable = new EventTable(/** @type {HTMLTableElement} */ (byId('events')));
const timeline = new Timeline(byId('states'));
const takeOvers = new TakeOvers(byId('take-overs'), byId('no-take-overs'));
const charts = new Charts(byId('charts'));

let run = '';
/** @type {readonly ShownVm[] | null} */
let vms = null;
/** @type {ShownEvent[]} */
let events = [];
let lastEvent = 0;
/** The one whose charts are shown, and what is known of it. @type {{ vm: string, next: number, rows: import('../src/web/history.ts').Row[] }} */
let history = { vm: '', next: 0, rows: [] };
/** Whose history the last question was for. */
let asked = '';
/** @type {number | null} */
let awaySinceMs = null;

const ask = follow(question, { onShown, onAway, onRefused });
addEventListener('hashchange', () => {
  if (!location.hash.startsWith('#vm=')) return;
  if (vms !== null) vmTable.show(vms, chosen());
  void ask();
});

function question() {
  asked = chosen() ?? '';
  const row = history.vm === asked ? history.next : 0;
  return `/vms?${new URLSearchParams({ run, event: `${lastEvent}`, vm: asked, row: `${row}` })}`;
}

/** The machine that the address names, or the first one. */
function chosen() {
  const named = new URLSearchParams(location.hash.slice(1)).get('vm');
  const first = vms?.[0]?.vm ?? null;
  return vms?.some(({ vm }) => vm === named) || vms === null ? (named ?? first) : first;
}

/** @param {Shown} shown */
function onShown(shown) {
  if (shown.run !== run) {
    run = shown.run;
    events = [];
    history = { vm: '', next: 0, rows: [] };
    eventTable.clear();
    takeOvers.clear();
  }
  awaySinceMs = null;
  connection('good', `Live, ${clock(shown.timeMs)}`);
  announce(shown.vms);
  vms = shown.vms;
  lastEvent = shown.lastEvent;
  events = [...events, ...shown.events].slice(-EVENTS_MAX);
  eventTable.add(shown.events, shown.timeMs);
  takeOvers.add(shown.takeOvers, shown.timeMs);
  keep(shown);
  write(byId('node'), shown.node);
  write(byId('version'), shown.version);
  showTally(shown);
  vmTable.show(vms, chosen());
  byId('no-vms').hidden = vms.length > 0;
  timeline.show(
    vms.map(({ vm }) => vm),
    events,
    shown.timeMs,
  );
  const { vm } = history;
  write(byId('chosen'), vm === '' ? '' : ` of ${vm}`);
  charts.show(vms.find((each) => each.vm === vm)?.role ?? null, history.rows, shown.timeMs);
  // Another was chosen since, or the first one wasn't known yet.
  if ((chosen() ?? '') !== asked) queueMicrotask(ask);
}

/** @param {Shown} shown */
function keep({ history: told, timeMs }) {
  if (told === null) {
    history = { vm: '', next: 0, rows: [] };
    return;
  }
  // Some that were not asked for, or none that follow on what is known: it begins anew.
  const known = told.vm === history.vm && told.first === history.next ? history.rows : [];
  const rows = [...known, ...told.rows].filter(([at]) => Number(at) > timeMs - WINDOW_MS - 30_000);
  history = { vm: told.vm, next: told.first + told.rows.length, rows };
}

/** @param {Shown} shown */
function showTally({ vms: all, node }) {
  const good = all.filter(({ state }) => kindOf(state) === 'good').length;
  const others = all.length - good;
  const text =
    others === 0
      ? `${all.length} of ${all.length} in good order`
      : `${others} of ${all.length} not protected`;
  write(byId('tally'), all.length === 0 ? '' : text);
  byId('tally').dataset['kind'] = others === 0 ? 'good' : 'warn';
  const title = `${others > 0 ? `(${others}) ` : ''}colo-agent ${node}`;
  if (document.title !== title) document.title = title;
}

/** What has changed, for who doesn't see it. @param {readonly ShownVm[]} now */
function announce(now) {
  if (vms === null) return;
  const before = new Map(vms.map(({ vm, state }) => [vm, state]));
  const changed = now.filter(({ vm, state }) => before.get(vm) !== state);
  if (changed.length === 0) return;
  say(changed.map(({ vm, state, reason }) => `${vm} is ${state}: ${reason}`).join('. '));
}

/** @param {string} reason */
function onAway(reason) {
  awaySinceMs ??= Date.now();
  connection('bad', `No answer of the daemon since ${clock(awaySinceMs)}; it is asked again and again`);
  byId('connection').title = reason;
}

function onRefused() {
  connection(
    'bad',
    'This browser may not look any more: run `colo-agent web` on the host, and open the link that it prints.',
  );
}

/** @param {'good' | 'bad'} kind @param {string} text */
function connection(kind, text) {
  const element = byId('connection');
  // Not each time of day.
  if (document.body.dataset['connection'] !== kind) say(text);
  element.dataset['kind'] = kind;
  document.body.dataset['connection'] = kind;
  write(element, text);
}

/** For who hears the page. @param {string} text */
function say(text) {
  byId('announcer').textContent = text;
}

/** @param {string} id */
function byId(id) {
  return /** @type {HTMLElement} */ (document.getElementById(id));
}
