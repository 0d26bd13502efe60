/** Where the metrics of all VMs are served: nowhere, or at an address that a reload may change. */
import { formatMetricsAddress, type MetricsAddress } from '../metrics/address.ts';
import { MetricsServer, type MetricsServerOptions } from '../metrics/server.ts';

export class MetricsEndpoint {
  readonly #options: Omit<MetricsServerOptions, 'address'>;
  #address: MetricsAddress | null = null;
  #server: MetricsServer | null = null;

  constructor(options: Omit<MetricsServerOptions, 'address'>) {
    this.#options = options;
  }

  /** Throws MetricsListenError, and serves where it did before then. One after the other, never two at once. */
  async moveTo(address: MetricsAddress | null): Promise<void> {
    if (text(address) === text(this.#address)) return;
    const before = this.#address;
    // First, because the new address may be another way to the same port.
    this.close();
    try {
      await this.#serve(address);
    } catch (error) {
      await this.#serve(before);
      throw error;
    }
  }

  close(): void {
    this.#server?.close();
    this.#server = null;
    this.#address = null;
  }

  async #serve(address: MetricsAddress | null): Promise<void> {
    if (address === null) return;
    this.#server = await MetricsServer.listen({ ...this.#options, address });
    this.#address = address;
  }
}

function text(address: MetricsAddress | null): string | null {
  return address === null ? null : formatMetricsAddress(address);
}
