import { formatBytes } from '../hypervisor/size';
import type { Activities } from './activities';
import { seconds } from './convergence';
import { LAST_LINE } from './details';
import type { EvacuateFleetInput, EvacuateHostInput } from './evacuation';
import type { MigrateVmInput, MoveColdInput } from './messages';

/**
 * Texts that the Temporal UI shows beside commands of a workflow. They are no part of what is replayed, so they may change; the server refuses one of more than
 * 400 bytes, and with it the whole workflow task, for ever: `oneLine` is applied to all.
 */
type Summaries = { [Name in keyof Activities]: (host: string, input: Parameters<Activities[Name]>[0]) => string };

const MOST_CHARACTERS = 100;
const MOST_DETAILS = 2_000;

/** Short enough for a summary, and without a line break. */
export function oneLine(text: string): string {
  const [...characters] = text.replace(/\s+/g, ' ');
  return characters.length <= MOST_CHARACTERS ? characters.join('') : `${characters.slice(0, MOST_CHARACTERS - 1).join('')}…`;
}

const disks = (list: readonly unknown[]) => (list.length === 1 ? '1 disk' : `${list.length} disks`);
const rate = (bytesPerSecond: number) => `${formatBytes(bytesPerSecond)}/s`;

/** What each activity does, on which host. */
const SUMMARIES: Summaries = {
  locateGuest: (_, { guest }) => `asks which host has ${guest}`,
  planMoves: (_, { host }) => `plans where the guests of ${host} go`,
  locations: () => 'asks where the guests are now',
  capacities: () => 'asks what each host has free',
  reserve: (_, { from, to }) => `waits for a slot on ${from} and one on ${to}`,
  reservable: (_, { from, to }) => `asks whether ${from} and ${to} would give a slot`,
  release: (_, { hosts }) => `gives the slots back on ${hosts.join(' and ')}`,
  setCordon: (_, { host, cordon }) => (cordon ? `cordons ${host}: nothing new comes` : `uncordons ${host}`),
  endedWorkflows: () => 'looks for reservations of workflows that have ended',
  hostsForRepair: (_, { guest }) => `asks all hosts what they said last of ${guest}`,

  inspectSource: (host) => `checks the guest on ${host}; changes nothing`,
  inspectStopped: (host) => `checks the stopped guest on ${host}; changes nothing`,
  inspectDestination: (host) => `checks whether ${host} can take the guest; changes nothing`,
  greetDestination: (host, { to }) => `checks whether ${host} and ${to} believe each other`,
  measureLoad: (host, { seconds: length }) => `measures on ${host} for ${length} s what the guest writes and dirties; changes nothing`,
  openLinkProbe: (host) => `waits on ${host} for a measurement of the link`,
  measureLink: (host, { to }) => `measures what the link from ${host} to ${to} carries`,
  prepareDestination: (host, { plan }) => `makes images for ${disks(plan.disks)} on ${host}`,
  exportDisks: (host, { plan }) => `opens ${disks(plan.disks)} on ${host} to be written`,
  startMirrors: (host, { targets, to, anew }) => `begins to copy ${disks(targets)} from ${host} to ${to}${anew ? ', anew' : ''}`,
  awaitMirrors: (host, { targets, to, around }) => `copies ${disks(targets)} from ${host} to ${to} until the rest takes at most ${seconds(around.budgetMs)}`,
  setBandwidth: (host, { bytesPerSecond }) => (bytesPerSecond === undefined ? `lifts the bandwidth cap on ${host}` : `caps the copy on ${host} at ${rate(bytesPerSecond)}`),
  diskBusy: (host) => `asks how busy the disks of ${host} are`,
  throttleGuest: (host, { bytesPerSecond }) => `limits the guest's writes on ${host} to ${rate(bytesPerSecond)}`,
  liftThrottle: (host) => `lifts the limit on the guest's writes on ${host}`,
  nudge: (host, { ms }) => `holds the guest's writes back on ${host} for up to ${ms} ms`,
  makeWriteBlocking: (host) => `makes each write on ${host} wait for its copy`,

  openIncoming: (host) => `starts a QEMU on ${host} that waits for the memory`,
  moveMemory: (host, { to, handOver }) => `try ${handOver.memoryTry}: sends the memory from ${host} to ${to}, pause of at most ${seconds(handOver.maxDowntimeMs)}`,
  receive: (host) => `receives the memory on ${host}, then runs the guest there`,
  sourceState: (host) => `asks ${host} how the hand-over ended`,
  destinationState: (host) => `asks ${host} whether the guest arrived`,
  reviveSource: (host) => `lets the guest run on ${host} again`,
  awaitPages: (host) => `waits on ${host} for the last page of the memory`,
  listenForPages: (host) => `listens anew on ${host} for the rest of the memory`,
  resumePages: (host) => `sends the rest of the memory from ${host} again`,
  endWithoutPages: (host) => `ends the guest on ${host}: the rest of its memory is lost`,

  settleDestination: (host) => `ends the move on ${host}: the guest lives there`,
  retireSource: (host, { sourceDisks, keepHours }) => `ends the old copy on ${host}; its images are ${sourceDisks === 'wipe' ? 'deleted' : `kept for ${keepHours} h`}`,
  stopExports: (host) => `undo: closes the images on ${host}`,
  destroyIncoming: (host) => `undo: ends the waiting QEMU on ${host}`,
  removeMirrors: (host) => `undo: stops the copy; the guest runs on, on ${host}`,
  discardDestination: (host) => `undo: deletes what was made on ${host}`,

  copyStopped: (host, { targets, to }) => `copies ${disks(targets)} of the stopped guest from ${host} to ${to}`,
  handOverStopped: (host, { to }) => `marks the guest on ${host} as handed over to ${to}`,
  takeStopped: (host) => `makes the guest startable on ${host}`,
  stayCold: (host) => `undo: the guest may be started on ${host} again`,

  inspectCopy: (host, { guest }) => `looks what ${host} has of ${guest}`,
  tidyCopy: (host) => `removes what a migration left beside the guest on ${host}`,
  retireFenced: (host) => `retires the copy on ${host}, whose host was fenced`,

  defineGuest: (host) => `defines a guest on ${host}`,
  startGuest: (host, { guest }) => `starts ${guest} on ${host}`,
  stopGuest: (host, { guest }) => `stops ${guest} on ${host}`,
  removeGuest: (host, { guest }) => `forgets ${guest} on ${host}`,
  listGuests: (host) => `lists the guests of ${host}`,
  showGuest: (host, { guest }) => `shows ${guest} on ${host}`,
  findGuests: (host) => `looks for QEMUs on ${host} that are not ours yet`,
  adoptGuest: (host, { pid, dryRun }) => `${dryRun ? 'shows what adopting' : 'adopts'} process ${pid} on ${host}${dryRun ? ' would give' : ''}`,
};

/** The activity's name if there is none, or if somebody's input lacks what it needs: an error here would fail the workflow task for ever. */
export function summaryOf(activity: string, host: string, input: unknown): string {
  const known = (SUMMARIES as Partial<Record<string, (host: string, input: unknown) => string>>)[activity];
  try {
    return oneLine(known?.(host, input) ?? activity);
  } catch {
    return activity;
  }
}

/** What is known of a guest before it moves. */
export interface MoveSize {
  diskCount?: number;
  /** What its images take. */
  diskBytes?: number;
}

/** `db-7: host-a → host-b, 2 disks, 48 GiB`, with what is known. */
export function moveSummary({ guest, from, to, cold, diskCount, diskBytes }: MoveSize & { guest: string; from?: string; to: string; cold?: boolean }): string {
  const size = [...(cold ? ['stopped'] : []), ...(diskCount === undefined ? [] : [diskCount === 1 ? '1 disk' : `${diskCount} disks`]), ...(diskBytes ? [formatBytes(diskBytes)] : [])];
  return oneLine(`${guest}${from === undefined ? '' : `: ${from}`} → ${[to, ...size].join(', ')}`);
}

function askedFor(fields: object): string {
  const asked = Object.entries(fields).filter(([, value]) => value !== undefined && !['{}', '[]', '""'].includes(JSON.stringify(value))).map(([name, value]) => `${name} ${typeof value === 'string' ? value : JSON.stringify(value)}`);
  // The server takes 20,000 bytes.
  return `Asked for: ${asked.join(', ').slice(0, MOST_DETAILS) || 'nothing but the defaults'}.`;
}

/** What was asked for, and where to look and what to type; Markdown that stays as it is at the start. */
export function moveDetails({ vm, to, ...fields }: MigrateVmInput | MoveColdInput, cold: boolean): string {
  return [
    cold ? `Copies the stopped guest **${vm}** to **${to}**, with its definition and disks. It can be started nowhere meanwhile.` : `Moves the guest **${vm}** with its disks to **${to}** while it runs. Whatever fails before the guest runs there leaves it running where it is.`,
    askedFor(fields),
    `\`vmferry watch ${vm}\` follows it, \`vmferry cancel ${vm}\` ends it and undoes everything.`,
    LAST_LINE,
  ].join('\n\n');
}

/** The same of an evacuation, of one host or many. */
export function evacuationStaticDetails(id: string, input: EvacuateHostInput | EvacuateFleetInput): string {
  return ['Cordons, then moves every guest that can go, a migration each, a few at a time. A guest that cannot go stays, and stops nobody.', askedFor(input), `\`vmferry evacuation watch ${id}\` follows it, \`vmferry evacuation cancel ${id}\` ends it.`, LAST_LINE].join('\n\n');
}
