/**
 * Why a QMP command failed. `class` is QEMU's error class (GenericError, CommandNotFound, ...) or one of ours: `ConnectFailed` (nobody there, or not
 * a QMP monitor), `ConnectionLost` (QEMU went away, or we closed), `ProtocolError` (QEMU sent something that is not QMP).
 */
export class QmpError extends Error {
  readonly class: string;
  /** QEMU's own words. */
  readonly desc: string;
  /** The command that failed; empty where the connection itself did. */
  readonly command: string;

  constructor(errorClass: string, desc: string, command: string) {
    super(command === '' ? desc : `QMP command ${command}: ${desc}`);
    this.name = 'QmpError';
    this.class = errorClass;
    this.desc = desc;
    this.command = command;
  }
}
