/** The resource as docs/pacemaker.md gives it to users, as XML for `cibadmin`: that is all which a test needs, and pcs and crmsh bring much. */
import type { ClusterNode } from './cluster.ts';

export const RESOURCE = 'web1';
export const CLONE = `${RESOURCE}-clone`;

type Settings = Record<string, string>;

const OPERATIONS: Settings[] = [
  { name: 'start', interval: '0', timeout: '90s' },
  { name: 'stop', interval: '0', timeout: '60s', 'on-fail': 'block' },
  { name: 'promote', interval: '0', timeout: '90s', 'on-fail': 'demote' },
  { name: 'demote', interval: '0', timeout: '120s', 'on-fail': 'block' },
  { name: 'monitor', role: 'Promoted', interval: '10s', timeout: '30s', 'on-fail': 'demote' },
  { name: 'monitor', role: 'Unpromoted', interval: '11s', timeout: '30s' },
];

/** `parameters`: those of the agent. */
export async function createResource(node: ClusterNode, parameters: Settings): Promise<void> {
  // There is nothing here that could switch a host off.
  await node.run('crm_attribute', '--name', 'stonith-enabled', '--update', 'false');
  await node.run('cibadmin', '--create', '--scope', 'resources', '--xml-text', cloneXml(parameters));
}

function cloneXml(parameters: Settings): string {
  const operations = OPERATIONS.map(
    (operation, index) => `<op id="${RESOURCE}-op-${index}" ${attributes(operation)}/>`,
  );
  return `<clone id="${CLONE}">
    ${pairs('meta_attributes', CLONE, { promotable: 'true', notify: 'true' })}
    <primitive id="${RESOURCE}" class="ocf" provider="colo" type="vm">
      ${pairs('instance_attributes', RESOURCE, parameters)}
      ${pairs('meta_attributes', `${RESOURCE}-meta`, { 'failure-timeout': '20s' })}
      <operations>${operations.join('')}</operations>
    </primitive>
  </clone>`;
}

function pairs(element: string, id: string, settings: Settings): string {
  const each = Object.entries(settings).map(
    ([name, value]) => `<nvpair id="${id}-${name}" name="${name}" value="${value}"/>`,
  );
  return `<${element} id="${id}-${element}">${each.join('')}</${element}>`;
}

function attributes(settings: Settings): string {
  return Object.entries(settings)
    .map(([name, value]) => `${name}="${value}"`)
    .join(' ');
}
