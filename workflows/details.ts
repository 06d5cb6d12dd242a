import type { HostWait, MigrationStatus } from './messages';

/** What the Temporal UI shows of a migration, Markdown: where it is, what its copy does, what was decided by whom, and what is waited for. */
export function currentDetails(status: MigrationStatus): string {
  const { vm, from, to, phase, memoryTry, verdict, message, decisions, asks, postponedUntil, warnings, waitsFor = [] } = status;
  return [
    `**${vm}**: ${from ?? '?'} → ${to}`,
    postponedUntil ? `Put off until **${postponedUntil}**` : `Phase **${phase}**${memoryTry > 1 ? `, try ${memoryTry}` : ''}`,
    ...(verdict ? [`**${verdict}**: ${message ?? ''}`] : []),
    ...(asks ? [`**Asks until ${asks.until}**: ${asks.choices.map((choice) => `\`vmferry steer ${vm} ${choice}\``).join(', ')}`] : []),
    ...waitsFor.map((wait) => waitDetails(vm, wait)),
    ...(decisions.length > 0 ? [['| when | by | what | why |', '|---|---|---|---|', ...decisions.slice(-10).map(({ at, by, what, why }) => `| ${at.slice(11, 19)} | ${cell(by)} | ${cell(what)} | ${cell(why)} |`)].join('\n')] : []),
    ...warnings.map((warning) => `Warning: ${warning}`),
  ].join('\n\n');
}

/** In the words of `vmferry fence`. */
export function waitDetails(vm: string, { host, why, since }: HostWait): string {
  return `**Waits for host ${host}** since ${since}: ${why}. Start its agent. Only if that machine is off, or cut from disks and network: \`vmferry fence ${host} --vm ${vm} --reason …\``;
}

export const cell = (text: string) => text.replaceAll('|', '\\|').replaceAll('\n', ' ');
