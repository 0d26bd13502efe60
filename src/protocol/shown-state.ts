import type { StateWord } from './machine.ts';

/** The state's word and its reason, as `status` shows them. */
export class ShownState {
  word: StateWord = 'STARTING';
  reason = '';
  private told = '';

  set(word: StateWord, reason: string): void {
    this.word = word;
    this.reason = reason;
  }

  /** What there is to tell since the last time, if anything. */
  takeChange(): { type: 'state'; state: StateWord; reason: string } | null {
    const told = `${this.word} ${this.reason}`;
    if (told === this.told) return null;
    this.told = told;
    return { type: 'state', state: this.word, reason: this.reason };
  }
}
