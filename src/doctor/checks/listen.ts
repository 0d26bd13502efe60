import { formatHostPort } from '../../agent/peer-address.ts';
import { type Check, fail, NotAsked, ok } from '../finding.ts';

export const listen: Check = {
  name: 'listen',
  title: 'whether the other host can reach this one',
  fault: 'unavailable',
  async run(patient) {
    const { answers } = patient.options;
    if (!answers && (await patient.agent()) !== null)
      throw new NotAsked('the agent that runs here listens there');
    try {
      const { port } = await patient.receive();
      const host = patient.options.listen?.host ?? '';
      if (!answers) {
        patient.reception?.close();
        return ok(`${formatHostPort({ host, port })} is free`);
      }
      return ok(
        `the other host's doctor is answered at ${formatHostPort({ host, port })}, until this one ends`,
      );
    } catch (error) {
      if (error instanceof NotAsked) throw error;
      return fail((error as Error).message, 'choose an address of this host, and a port that nobody has');
    }
  },
};
