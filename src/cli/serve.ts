import { Command, Option } from 'commander';
import { LOG_LEVELS, Log, type LogLevel } from '../agent/log.ts';
import { ServiceManager } from '../agent/systemd.ts';
import { Daemon } from '../daemon/daemon.ts';
import { formatHttpAddress, type HttpAddress } from '../http/address.ts';
import { WEB_ADDRESS } from '../web/address.ts';
import { DAEMON_SOCKET } from './control-path.ts';
import { httpAddress } from './option-parsers.ts';
import { onTerminationSignal } from './signals.ts';
import { version } from './version.ts';
import { vmOptions } from './vm-options.ts';
import { STATE_FOLDER } from './witness-options.ts';

export const CONFIG_FILE = '/etc/colo-agent/agent.toml';

interface ServeOptions {
  config: string;
  control: string;
  metrics?: HttpAddress;
  web?: HttpAddress;
  logLevel: LogLevel;
}

export function serveCommand(): Command {
  return new Command('serve')
    .description('Protect all VMs of the configuration, each with an agent of its own (docs/daemon.md)')
    .option('--config <file>', 'what to protect; conf.d/*.toml beside it is read, too', CONFIG_FILE)
    .option('--control <socket>', 'where the other commands reach the daemon', DAEMON_SOCKET)
    .option(
      '--metrics <address>',
      'serve the metrics and the health of all VMs there: PORT of 127.0.0.1, HOST:PORT, or unix:PATH (default: `metrics` of the file)',
      httpAddress,
    )
    .addOption(
      new Option(
        '--web [address]',
        'serve a page of all VMs there, for whoever `colo-agent web` gives a link to: as --metrics; without an address 127.0.0.1:7780 (docs/web.md; default: `web` of the file)',
      )
        .argParser(httpAddress)
        .preset(formatHttpAddress(WEB_ADDRESS)),
    )
    .addOption(
      new Option('--log-level <level>', 'what goes to stderr of the daemon itself')
        .choices(LOG_LEVELS)
        .default('info'),
    )
    .action(runServe);
}

async function runServe({ config, control, metrics, web, logLevel }: ServeOptions): Promise<void> {
  const log = new Log(logLevel, () => ({}));
  const service = ServiceManager.find(log);
  const starting = Daemon.start({
    configFile: config,
    controlPath: control,
    command: [process.execPath, ...process.execArgv, process.argv[1] as string],
    vmOptions: vmOptions(),
    stateFolder: STATE_FOLDER,
    metrics: metrics ?? null,
    web: web ?? null,
    version,
    log,
  });
  // One that comes while it begins ends nothing either. What goes wrong the log says; all goes on as it was.
  process.on('SIGHUP', () => void starting.then((daemon) => daemon.reload(null)).catch(() => {}));
  const daemon = await starting;
  service?.ready(`protects what ${config} names`);
  onTerminationSignal(() => {
    service?.stopping('ends protection; the VMs run on');
    void daemon.end();
  });
}
