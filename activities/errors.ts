import { ApplicationFailure } from '@temporalio/activity';

/**
 * The one map from a failure to its type, whether it is retried, and what an operator does (docs/operating.md is held against it).
 * Transport errors are retried; refusals and broken promises are not.
 */
export const ERRORS = {
  QmpDisconnected: { retried: true, advice: 'QEMU ended or closed its monitor; vmferry looks again. If it repeats, see the guest\'s qemu.log in the run folder' },
  QmpTimeout: { retried: true, advice: 'QEMU did not answer in time; vmferry tries again. If it repeats, the host is overloaded or a link hangs' },
  QmpMonitorBusy: { retried: true, advice: 'disconnect the other client of this monitor; QEMU serves one at a time' },
  QmpProtocolError: { retried: false, advice: 'the socket is not a QMP monitor: correct the path in the definition or adopt the guest by its pid' },
  QmpCommandFailed: { retried: false, advice: 'QEMU refused a command; its own words are in the message' },
  ProcessFailed: { retried: false, advice: 'a program could not be started or failed; its own words are in the message' },
  GuestGone: { retried: false, advice: 'the guest\'s QEMU ended; see its qemu.log, then start the guest where it is defined' },
  GuestStateError: { retried: false, advice: 'the guest is not in a state that allows this; the message says which and what to do' },
  TlsRefused: { retried: false, advice: 'nothing travels as plain text instead: correct the TLS files that the message names, then migrate again' },
  MirrorFailed: { retried: false, advice: 'a disk could not be copied: look at the destination\'s free space and at the link, then migrate again' },
  DestinationDied: { retried: false, advice: 'the destination\'s QEMU ended; its own words are in the message. The guest runs on at the source' },
  CopyStalled: { retried: false, advice: 'nothing was copied for a long time: look at the link and at the destination\'s disk, then migrate again' },
  DisksNotConverging: { retried: false, advice: 'the guest writes faster than its disks can be copied: let vmferry act (--on-divergence auto), give more bandwidth or time, or a quieter hour' },
  RemedyFailed: { retried: false, advice: 'nothing has changed; vmferry goes on to the next remedy' },
  Aborted: { retried: false, advice: 'an operator ended it; the guest runs where it was' },
  DowntimeBudgetExceeded: { retried: false, advice: 'the guest writes faster than the link: give more --max-downtime, more bandwidth, or a quieter hour' },
  MemoryNotConverging: { retried: false, advice: 'the guest dirties memory faster than the link: give more bandwidth or a quieter hour' },
  MigrationRefused: { retried: false, advice: 'nothing was changed; the message lists every reason with what to do' },
  NoSlot: { retried: true, advice: 'as many guests as allowed are on their way; vmferry waits for a slot (vmferry host set-limits allows more)' },
  EvacuationRefused: { retried: false, advice: 'nothing was changed; the message lists every reason with what to do' },
  HostUnreachable: { retried: false, advice: 'the agent of this host does not answer: start it, or check the host\'s name' },
  ImageExists: { retried: false, advice: 'move or delete the image at the destination if it is not needed' },
  InvalidDefinition: { retried: false, advice: 'correct the fields that the message names' },
  PathRefused: { retried: false, advice: 'use a path inside one of the host\'s roots, or add a root to its configuration' },
  GuestCrashedAfterMove: { retried: false, advice: 'the guest arrived and its QEMU ended later: start it at the destination; its copy at the source is out of date' },
  PostCopyLost: { retried: false, advice: 'the guest was in both hosts, and one of them, or the link, failed: it starts again from its disks, on the host that the message names' },
  OwnershipUnknown: { retried: false, advice: 'start no copy by hand: "vmferry repair VM" looks at all hosts and says which copy is the guest, or why nobody can' },
} as const satisfies Record<string, { retried: boolean; advice: string }>;

export type ErrorType = keyof typeof ERRORS;

/** The Temporal failure for an error of the layers below, with `details` for a report. What is not in the map is a fault of ours: it keeps its name and is retried. */
export function toFailure(error: unknown, host: string, guest?: string, details?: object): ApplicationFailure {
  if (error instanceof ApplicationFailure) return error;
  const { name, message } = error as Error;
  const known = Object.hasOwn(ERRORS, name) ? ERRORS[name as ErrorType] : undefined;
  const about = [host, guest && `guest ${guest}`].filter(Boolean).join(', ');
  return ApplicationFailure.create({
    type: known ? name : 'InternalError',
    message: `${about}: ${message}${known ? ` — ${known.advice}` : ''}`,
    nonRetryable: known ? !known.retried : false,
    ...(error instanceof Error && { cause: error }),
    ...(details && { details: [details] }),
  });
}
