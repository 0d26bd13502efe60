/** Planned hand-overs (`colo-agent drill`) in the middle of it all. One may be refused or come to nothing, with a reason; what must hold holds all the same. */
import type { DrillReport } from '../../src/agent/drill-report.ts';
import { type AgentProcess, within } from './agent-process.ts';
import type { Journal } from './journal.ts';

/** Every wait of a drill has a limit of its own, far below this. */
const ANSWER_MS = 120_000;

export class Drills {
  asked = 0;
  done = 0;
  refused = 0;
  /** The agent died over it. */
  unanswered = 0;
  readonly #journal: Journal;

  constructor(journal: Journal) {
    this.#journal = journal;
  }

  /** The result is to be awaited when nothing stands in its way any more: it resolves when there is an answer, or none for too long, which is a violation. */
  ask(agent: AgentProcess): () => Promise<void> {
    this.asked++;
    const counted = agent.drill().then(
      (report) => this.#onDone(report),
      (error: Error) => this.#onFailed(error),
    );
    return async () => {
      if ((await within(counted, ANSWER_MS)) === null)
        this.#journal.violate(`a drill has had no answer for ${ANSWER_MS} ms`);
    };
  }

  describe(): string {
    const { asked, done, refused, unanswered } = this;
    return `drills: ${asked} asked for, ${done} done, ${refused} refused or come to nothing, ${unanswered} whose agent died over it`;
  }

  #onDone({ node, outageMs }: DrillReport): true {
    this.done++;
    this.#journal.note(
      `the drill is done: the guest runs on ${node}, and stood for ${Math.round(outageMs)} ms`,
    );
    return true;
  }

  #onFailed(error: Error): true {
    const isRefused = 'code' in error && error.code === 'refused';
    if (isRefused) this.refused++;
    else this.unanswered++;
    this.#journal.note(`the drill ${isRefused ? 'is refused' : 'has no answer'}: ${error.message}`);
    return true;
  }
}
