/** Connections between the two hosts: ordered, with delays, and breakable in the ways in which TCP connections break. */
import type { World } from './world.ts';

interface End<T> {
  reader: { onData: (item: T) => void; onClosed: (reason: string) => void } | null;
  /** What came before anybody read. */
  unread: (() => void)[];
  /** Closed from this side or told that it is closed: nothing more is delivered to it. */
  done: boolean;
  /** When the last item on the way to this end arrives: the next one can't overtake it. */
  arrivesMs: number;
}

/** One connection; ends 0 and 1. */
export class Connection<T> {
  private readonly world: World;
  private readonly ends: [End<T>, End<T>];
  /** Items are dropped and nobody is told. */
  private silent = false;

  constructor(world: World) {
    this.world = world;
    const end = () => ({ reader: null, unread: [], done: false, arrivesMs: 0 });
    this.ends = [end(), end()];
  }

  attach(side: 0 | 1, onData: (item: T) => void, onClosed: (reason: string) => void): void {
    const end = this.ends[side];
    end.reader = { onData, onClosed };
    for (const deliver of end.unread) this.world.clock.after(0, deliver);
  }

  send(from: 0 | 1, item: T): void {
    if (this.ends[from].done) return;
    this.toward(from === 0 ? 1 : 0, (end) => this.read(end, () => end.reader?.onData(item)));
  }

  /** In order: what was sent before still arrives, then the other end is told. */
  close(from: 0 | 1): void {
    if (this.ends[from].done) return;
    this.ends[from].done = true;
    this.toward(from === 0 ? 1 : 0, (end) => this.lose(end, 'the peer closed the connection'));
  }

  /** The network breaks it: what is under way is lost, and both ends are told at some moment. */
  reset(): void {
    this.silent = true;
    for (const end of this.ends) {
      this.world.clock.after(this.world.random.between(0, 20), () => this.lose(end, 'connection reset'));
    }
  }

  /** Nothing arrives any more and nobody is told. */
  blackhole(): void {
    this.silent = true;
  }

  /** A process on one side dies; with its host, nobody is told. */
  kill(side: 0 | 1, withHost: boolean): void {
    if (withHost) {
      this.ends[side].done = true;
      if (this.world.options.lossyCrashes) this.silent = true;
    } else {
      this.close(side);
    }
  }

  private toward(side: 0 | 1, deliver: (end: End<T>) => void): void {
    const { clock, random } = this.world;
    const end = this.ends[side];
    end.arrivesMs = Math.max(end.arrivesMs, clock.nowMs + random.between(0.1, 3));
    clock.at(end.arrivesMs, () => {
      if (!this.silent && !end.done) deliver(end);
    });
  }

  private lose(end: End<T>, reason: string): void {
    if (end.done) return;
    this.read(end, () => {
      end.done = true;
      end.reader?.onClosed(reason);
    });
  }

  private read(end: End<T>, deliver: () => void): void {
    if (end.reader === null) end.unread.push(deliver);
    else deliver();
  }
}
