/** Character devices, monitors and displays: whatever QEMU listens on or writes to beside the guest's own machine. */
import { OptionValue } from './option-value.ts';
import type { Translation } from './translation.ts';

/** They have no name outside QEMU, or one that QEMU chooses. */
const SELF_CONTAINED = new Set([
  ...['null', 'vc', 'ringbuf', 'memory', 'pty', 'stdio', 'msmouse', 'wctablet', 'braille', 'testdev', 'none'],
  ...['spicevmc', 'spiceport', 'qemu-vdagent', 'hub'],
]);
/** Named by a path that must be there. */
const HOST_DEVICES = new Set(['pipe', 'serial', 'tty', 'parallel', 'parport']);
const FD_SET = /^\/dev\/fdset\/(\d+)$/;

/** `-chardev`. */
export function translateChardev(text: string, translation: Translation): string {
  const value = new OptionValue(text, 'backend');
  const backend = value.get('backend') ?? '';
  const id = value.get('id') ?? '';
  const what = `chardev ${id}`;
  const logfile = value.get('logfile');
  if (logfile !== null)
    value.set('logfile', translation.place(`${what}, log`, logfile, fileName(logfile, id)));
  if (backend === 'socket') translateSocket(value, id, translation);
  else if (backend === 'file') {
    const file = value.get('path') ?? '';
    value.set('path', translation.place(what, file, fileName(file, id)));
    if (value.get('input-path') !== null)
      value.set('input-path', translation.need(what, value.get('input-path') ?? ''));
  } else if (HOST_DEVICES.has(backend)) value.set('path', translation.need(what, value.get('path') ?? ''));
  else if (backend === 'udp') translation.differ(what, text, text, null);
  else if (!SELF_CONTAINED.has(backend)) refuse(`-chardev ${text}`, backend, translation);
  return value.toString();
}

/** `append=on` to a descriptor that libvirt opened has no file's name. */
function fileName(file: string, id: string): string | undefined {
  return FD_SET.test(file) ? `${id}.log` : undefined;
}

function refuse(where: string, backend: string, translation: Translation): void {
  translation.refuse(
    where,
    `what '${backend}' leads to can't be found on another host`,
    'use a socket, a file or null for it, and restart the VM',
  );
}

function translateSocket(value: OptionValue, id: string, translation: Translation): void {
  const what = `chardev ${id}`;
  const listens = value.get('server') === 'on';
  const file = value.get('path');
  const fd = value.get('fd');
  if (fd !== null) {
    if (!listens)
      return void translation.refuse(
        `-chardev ${value}`,
        'its socket was connected by whoever started QEMU',
        'give it a path or an address, and restart the VM',
      );
    value.delete('fd');
    value.set('path', translation.place(what, `descriptor ${fd}`, `${id}.sock`));
  } else if (file !== null) {
    if (!listens) translation.need(what, file);
    else
      value.set(
        'path',
        isAgents(file, translation) ? takeMonitor(translation) : translation.place(what, file),
      );
  } else {
    const address = `${value.get('host') ?? ''}:${value.get('port') ?? ''}`;
    translation.differ(what, address, address, null);
  }
  // A standby that waits for a client before it builds its machine would never answer.
  if (!listens) return;
  value.delete('nowait');
  value.set('wait', 'off');
}

function isAgents(file: string, translation: Translation): boolean {
  return translation.absolute(file) === translation.absolute(translation.primary.qmpPath);
}

function takeMonitor(translation: Translation): string {
  const { primary, qmpPath } = translation;
  if (!translation.differences.some(({ what }) => what === 'QMP'))
    translation.differ('QMP', primary.qmpPath, qmpPath, '--qmp-path FILE');
  return qmpPath;
}

/** The older syntax of -serial, -monitor, -qmp and the like: `unix:PATH,server=on`, `file:PATH`, `chardev:ID`, a device's path. */
export function translateRedirection(name: string, text: string, translation: Translation): string {
  const [, mux = '', rest = ''] = /^(mon:)?(.*)$/s.exec(text) ?? [];
  const [, backend = rest, argument = ''] = /^([a-z-]+):(.*)$/s.exec(rest) ?? [];
  if (rest.startsWith('/dev/')) return mux + translation.need(`-${name}`, rest);
  if (backend === 'chardev' || SELF_CONTAINED.has(backend)) return text;
  if (backend === 'file') return `${mux}file:${translation.place(`-${name}`, argument)}`;
  if (backend === 'pipe') return `${mux}pipe:${translation.need(`-${name}`, argument)}`;
  if (backend === 'unix') return `${mux}unix:${unixSocket(name, argument, translation)}`;
  if (['tcp', 'telnet', 'websocket', 'udp'].includes(backend)) {
    translation.differ(`-${name}`, text, text, null);
    return mux + (backend === 'udp' ? rest : `${backend}:${withoutWaiting(argument, 'address')}`);
  }
  refuse(`-${name} ${text}`, backend, translation);
  return text;
}

function unixSocket(name: string, text: string, translation: Translation): string {
  const value = new OptionValue(text, 'path');
  const file = value.get('path') ?? '';
  if (value.get('server') !== 'on') {
    translation.need(`-${name}`, file);
    return text;
  }
  value.set(
    'path',
    isAgents(file, translation) ? takeMonitor(translation) : translation.place(`-${name}`, file),
  );
  return withoutWaiting(value.toString(), 'path');
}

function withoutWaiting(text: string, firstKey: string): string {
  const value = new OptionValue(text, firstKey);
  if (value.get('server') !== 'on') return text;
  value.delete('nowait');
  value.set('wait', 'off');
  return value.toString();
}

export function translateVnc(text: string, translation: Translation): string {
  const value = new OptionValue(text, 'address');
  const address = value.get('address') ?? 'none';
  const { vnc } = translation.choices;
  if (address === 'none') return text;
  if (vnc !== null) value.set('address', vnc);
  else if (address.startsWith('unix:')) {
    value.set('address', `unix:${translation.place('-vnc', address.slice('unix:'.length))}`);
    return value.toString();
  }
  translation.differ('-vnc', address, vnc ?? address, '--vnc ADDRESS');
  return value.toString();
}

export function translateSpice(text: string, translation: Translation): string {
  const value = new OptionValue(text, '');
  const address = value.get('addr');
  if (value.get('unix') === 'on' && address !== null) value.set('addr', translation.place('-spice', address));
  else translation.differ('-spice', text, text, null);
  for (const key of ['x509-dir', 'x509-key-file', 'x509-cert-file', 'x509-cacert-file', 'rendernode'])
    if (value.get(key) !== null) value.set(key, translation.need(`-spice ${key}`, value.get(key) ?? ''));
  return value.toString();
}

/** A window needs somebody who sits before it. The guest doesn't see which display it has. */
export function translateDisplay(text: string, translation: Translation): string {
  const [kind = ''] = text.split(',');
  if (kind.startsWith('vnc=')) return `vnc=${translateVnc(text.slice('vnc='.length), translation)}`;
  if (kind === 'none' || kind === 'egl-headless') return text;
  translation.differ('-display', text, 'none', null);
  return 'none';
}
