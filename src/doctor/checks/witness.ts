import type { WitnessChoice } from '../../agent/arbitration.ts';
import { tryWitness } from '../../agent/witness-access.ts';
import { parseRecord } from '../../protocol/arbiter.ts';
import { type Check, type Finding, fail, NotAsked, ok, warn } from '../finding.ts';
import type { WitnessOptions } from '../options.ts';

type Etcd = WitnessChoice & { kind: 'etcd' };

export const witness: Check = {
  name: 'witness',
  title: 'who decides when the hosts have lost each other',
  fault: 'configuration',
  remedy: 'mend what is named; docs/arbitration.md has the options of the witness',
  async run(patient) {
    const { witness: options, vm, node } = patient.options;
    if (options.endpoints.length > 0 && vm === null) throw new NotAsked('no VM was named (--vm)');
    const choice = options.open(options.endpoints);
    if (choice.kind === 'etcd') return judgeEtcd(choice, options, node).finally(() => choice.client.close());
    if (choice.kind === 'manual')
      return ok('nobody but a person (manual): `colo-agent failover --force NAME` on the standby');
    return warn(
      'nobody (none): when the link is cut both VMs run, with the same addresses and diverging disks',
      'give the URLs of an etcd cluster to --witness, or manual; none is for trials on one host',
    );
  },
};

/** Throws WitnessAccessError, as an agent's start does. */
async function judgeEtcd(etcd: Etcd, options: WitnessOptions, node: string | null): Promise<Finding> {
  const reason = await tryWitness(etcd);
  if (reason !== null)
    return fail(
      `the witness doesn't answer: ${reason}`,
      'start etcd, open its port for this host, and look at --witness; until it answers nobody takes over',
    );
  const silent = await silentMembers(options);
  const held = await recordOf(etcd, node);
  const found = `etcd answers, and this host may write there (as ${node}); ${held}`;
  if (silent.length > 0)
    return warn(`${found}; but not every member answers: ${silent.join('; ')}`, 'start these members');
  return options.endpoints.length < 3
    ? warn(
        `${found}; ${options.endpoints.length} member of it is known`,
        'three members on three hosts outlive one',
      )
    : ok(found);
}

/** One after the other; the agent goes on to the next by itself, so that a dead one isn't noticed. */
async function silentMembers({ endpoints, open }: WitnessOptions): Promise<string[]> {
  const reasons: string[] = [];
  for (const endpoint of endpoints.length > 1 ? endpoints : []) {
    const member = open([endpoint]) as Etcd;
    try {
      await member.client.read(member.key);
    } catch (error) {
      reasons.push((error as Error).message);
    } finally {
      member.client.close();
    }
  }
  return reasons;
}

/** Throws Error for what is no record, which no agent decides by. */
async function recordOf({ client, key }: Etcd, node: string | null): Promise<string> {
  const found = await client.read(key);
  if (found === null) return `no record of this VM yet (${key})`;
  const { primary, generation } = parseRecord(found.value);
  const where = primary === node ? 'here' : `on ${primary}`;
  return `by its record the VM runs ${where}, in generation ${generation}`;
}
