/** How an agent's end is told: a line, or JSON for scripts, and the exit code. */
import type { AgentOutcome } from '../agent/primary-agent.ts';
import type { SecondaryOutcome } from '../agent/secondary-agent.ts';
import { tellSupervisor } from '../agent/supervisor-channel.ts';
import { checksOf, hint } from '../doctor/hints.ts';
import { EXIT } from './exit-codes.ts';
import type { SharedOptions } from './shared-options.ts';

type Outcome = AgentOutcome | SecondaryOutcome;

const OUTCOME_EXIT: Record<Outcome['outcome'], number> = {
  stopped: EXIT.ok,
  'guest-shutdown': EXIT.ok,
  'vm-lost': EXIT.unavailable,
  'handed-over': EXIT.ok,
  fenced: EXIT.tryAgain,
  refused: EXIT.configuration,
  'stale-twin': EXIT.configuration,
};

export function report({ vm, json }: SharedOptions, { outcome, reason }: Outcome): void {
  const told = `${reason}${hint(checksOf({ outcome }))}`;
  tellSupervisor({ type: 'end', outcome, reason: told });
  if (json) process.stdout.write(`${JSON.stringify({ outcome, reason })}\n`);
  else process.stderr.write(`colo-agent: ${vm}: ${outcome}: ${told}\n`);
  process.exitCode = OUTCOME_EXIT[outcome];
}
