import type { MigrationStatus } from './messages';

/** What the Temporal UI shows of a migration, Markdown: where it is, what its copy does, what was decided by whom, and what is waited for. */
export function currentDetails(status: MigrationStatus): string {
  const { vm, from, to, phase, memoryTry, verdict, message, decisions, asks, postponedUntil, warnings } = status;
  return [
    `**${vm}**: ${from ?? '?'} → ${to}`,
    postponedUntil ? `Put off until **${postponedUntil}**` : `Phase **${phase}**${memoryTry > 1 ? `, try ${memoryTry}` : ''}`,
    ...(verdict ? [`**${verdict}**: ${message ?? ''}`] : []),
    ...(asks ? [`**Asks until ${asks.until}**: ${asks.choices.map((choice) => `\`vmferry steer ${vm} ${choice}\``).join(', ')}`] : []),
    ...(decisions.length > 0 ? [['| when | by | what | why |', '|---|---|---|---|', ...decisions.slice(-10).map(({ at, by, what, why }) => `| ${at.slice(11, 19)} | ${cell(by)} | ${cell(what)} | ${cell(why)} |`)].join('\n')] : []),
    ...warnings.map((warning) => `Warning: ${warning}`),
  ].join('\n\n');
}

export const cell = (text: string) => text.replaceAll('|', '\\|').replaceAll('\n', ' ');
