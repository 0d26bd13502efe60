import { formatHostPort } from '../../agent/peer-address.ts';
import { type Check, fail, NotAsked, ok } from '../finding.ts';

export const listen: Check = {
  name: 'listen',
  title: 'whether the other host can reach this one',
  fault: 'unavailable',
  async run(patient) {
    try {
      const { port } = await patient.receive();
      const host = patient.options.listen?.host ?? '';
      return ok(
        `the other host's doctor is answered at ${formatHostPort({ host, port })}, until this one ends`,
      );
    } catch (error) {
      if (error instanceof NotAsked) throw error;
      return fail((error as Error).message, 'choose an address of this host, and a port that nobody has');
    }
  },
};
