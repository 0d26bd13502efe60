import { GenerationFile } from '../../agent/generation-file.ts';
import { type Check, fail, NotAsked, ok } from '../finding.ts';
import { whyNotWritable } from './disks.ts';

export const stateDir: Check = {
  name: 'state-dir',
  title: 'where the newest generation is kept',
  fault: 'configuration',
  remedy: 'mend what is named, before an agent is started here (docs/arbitration.md)',
  async run(patient) {
    const { stateFolder, vm, node } = patient.options;
    const closed = whyNotWritable(stateFolder);
    if (closed !== null)
      return fail(
        `can't record a generation in ${stateFolder}: ${closed}`,
        'give --state-dir a folder that can be written',
      );
    if (vm === null) throw new NotAsked('no VM was named (--vm)');
    if (node === null) return fail("this host's name can't stand in the witness's record", 'give --node');
    const { highest } = new GenerationFile(stateFolder, vm, node);
    return ok(
      `${stateFolder} can be written; ${highest === 0 ? 'no generation yet' : `generation ${highest}`}`,
    );
  },
};
