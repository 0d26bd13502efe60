/** The QMP sockets that a QEMU listens on by a name, as its command line says. */
import { optionValues, parseKeyValues } from './command-line.ts';

/** What libvirt calls its own monitor. It is spoken for, even by libvirts that gave it a name. */
const LIBVIRTS_CHARDEV = 'charmonitor';

export function isLibvirts(commandLine: readonly string[]): boolean {
  return optionValues(commandLine, 'chardev').some(
    (value) => parseKeyValues(value, 'backend').get('id') === LIBVIRTS_CHARDEV,
  );
}

export function monitorSockets(commandLine: readonly string[]): string[] {
  const direct = ['qmp', 'qmp-pretty'].flatMap((option) =>
    optionValues(commandLine, option).flatMap((value) =>
      value.startsWith('unix:') ? listeningPath(parseKeyValues(value.slice('unix:'.length), 'path')) : [],
    ),
  );
  const chardevs = optionValues(commandLine, 'chardev').map((value) => parseKeyValues(value, 'backend'));
  const monitors = optionValues(commandLine, 'mon')
    .map((value) => parseKeyValues(value, 'chardev'))
    .filter((monitor) => monitor.get('mode') === 'control')
    .map((monitor) => monitor.get('chardev'));
  return [
    ...direct,
    ...monitors.flatMap((id) =>
      chardevs
        .filter((chardev) => chardev.get('id') === id && id !== LIBVIRTS_CHARDEV)
        .flatMap(listeningPath),
    ),
  ];
}

function listeningPath(socket: Map<string, string>): string[] {
  const file = socket.get('path');
  return file?.startsWith('/') && socket.get('server') === 'on' ? [file] : [];
}
