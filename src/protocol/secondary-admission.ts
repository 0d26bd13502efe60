/** Whether a primary's HELLO begins a session, and what it is answered when it doesn't. */
import type { VmRecord } from './arbiter.ts';
import { type Body, GENERATION_MAX } from './messages.ts';
import type { SecondaryContext } from './secondary-context.ts';
import type { Life } from './secondary-life.ts';

export type Hello = Body & { type: 'hello' };
type Refusal = Body & { type: 'error' };

/** What is said of a HELLO in `generation` that can't begin a session; null: it may. */
export function refuseHello(
  context: SecondaryContext,
  hello: Hello,
  generation: number,
  life: Life,
): Refusal | null {
  const own = context.generation;
  const unfit = misfit(context, hello);
  if (unfit !== null) return refusal('incompatible', unfit);
  if (life.now === 'taking-over' && !life.mayYieldTo(generation))
    return refusal('taking-over', 'this standby is taking over');
  if (life.now === 'unclear') return refusal('blocked', context.shown.reason);
  // INVARIANT 4: the newest generation runs; an older primary learns here that it was superseded.
  if (life.now === 'running') return stale('this VM runs', own, 'running');
  if (generation < own) return stale(`generation ${generation} is older than ${own}`, own, 'standby');
  if (generation >= GENERATION_MAX)
    return refusal('protocol', `generation ${generation} leaves no room for the next ones`);
  return null;
}

/** Both ends must leave the decision to the same judge, who must be able to tell them apart. */
function misfit({ options }: SecondaryContext, { node, arbitration }: Hello): string | null {
  const { failover, node: own } = options;
  const expected = failover === 'claimed' ? 'witness' : 'none';
  const says = (word: string) => (word === 'witness' ? 'asks a witness' : 'asks no witness');
  if (arbitration !== expected)
    return `the primary ${says(arbitration)}, its standby ${says(expected)}: give both the same --witness`;
  if (arbitration !== 'witness' || node !== own) return null;
  return `both hosts call themselves ${own}: the witness can't tell them apart, give each its own --node`;
}

/**
 * INVARIANT 4: both ends must ask one witness. What stands against a primary that says HELLO in `generation`, by the record at ours; null: it has won that
 * generation there.
 */
export function disownedBy(record: VmRecord | null, { node }: Hello, generation: number): string | null {
  if (record !== null && record.primary === node && record.generation >= generation) return null;
  const ours =
    record === null
      ? 'has no record of this VM'
      : `has ${record.primary} in generation ${record.generation} as its primary`;
  return (
    `the standby's witness ${ours}, and ${node} says that it has won generation ${generation}: do both name the same etcd (--witness), ` +
    'the same --witness-prefix, and the same --vm?'
  );
}

export function refusal(code: string, message: string): Refusal {
  return { type: 'error', code, message: message.slice(0, 512) };
}

function stale(message: string, generation: number, role: 'standby' | 'running'): Refusal {
  return { type: 'error', code: 'stale-generation', message, generation, role };
}
