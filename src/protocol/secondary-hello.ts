/** What a HELLO has to agree with before a secondary looks at the VM that it describes. */
import type { SecondaryOptions } from './machine.ts';
import type { Body } from './messages.ts';

/** Both ends must leave the decision to the same judge, who must be able to tell them apart. Gives what is wrong. */
export function misfit(
  { node, arbitration }: Body & { type: 'hello' },
  { failover, node: own }: SecondaryOptions,
): string | null {
  const expected = failover === 'claimed' ? 'witness' : 'none';
  const says = (word: string) => (word === 'witness' ? 'asks a witness' : 'asks no witness');
  if (arbitration !== expected)
    return `the primary ${says(arbitration)}, its standby ${says(expected)}: give both the same --witness`;
  if (arbitration !== 'witness' || node !== own) return null;
  return `both hosts call themselves ${own}: the witness can't tell them apart, give each its own --node`;
}
