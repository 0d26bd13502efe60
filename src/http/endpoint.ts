/** Where something is served: nowhere, or at an address that a reload may change. */
import { formatHttpAddress, type HttpAddress } from './address.ts';

export interface Served {
  close(): void;
}

export class Endpoint<Server extends Served> {
  readonly #listen: (address: HttpAddress) => Promise<Server>;
  #address: HttpAddress | null = null;
  #server: Server | null = null;

  /** `listen`: throws HttpListenError. */
  constructor(listen: (address: HttpAddress) => Promise<Server>) {
    this.#listen = listen;
  }

  /** Null: it is served nowhere. */
  get address(): HttpAddress | null {
    return this.#address;
  }

  get server(): Server | null {
    return this.#server;
  }

  /** Throws HttpListenError, and serves where it did before then. One after the other, never two at once. */
  async moveTo(address: HttpAddress | null): Promise<void> {
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

  async #serve(address: HttpAddress | null): Promise<void> {
    if (address === null) return;
    this.#server = await this.#listen(address);
    this.#address = address;
  }
}

function text(address: HttpAddress | null): string | null {
  return address === null ? null : formatHttpAddress(address);
}
