/** A moment of a migration at which something is done: around a QMP command that changes something, or around a durable mark of who owns the guest. */
export interface Step {
  name: string;
  phase: 'preflight' | 'prepare' | 'export' | 'mirror' | 'converge' | 'memory' | 'switchover' | 'cleanup';
  /** Whose agent, or guard, is stopped there. */
  at: 'source' | 'destination';
  what: string;
  when: 'before' | 'sent' | 'after';
  /** Counts only once the source has been let go: some commands are sent more than once. */
  after?: 'migrate-continue';
  /** The guest is paused: R9 counts. */
  paused?: true;
}

/** Every step, in the order of a migration. Between `sent` and `after` QEMU has the command, and its agent has no answer. */
export const STEPS: Step[] = [
  { name: 'preflight', phase: 'preflight', at: 'source', what: 'query-commands', when: 'before' },
  { name: 'prepare: destination marked incoming', phase: 'prepare', at: 'destination', what: 'mark incoming', when: 'after' },
  { name: 'before nbd-server-start', phase: 'export', at: 'destination', what: 'nbd-server-start', when: 'before' },
  { name: 'after block-export-add', phase: 'export', at: 'destination', what: 'block-export-add', when: 'after' },
  { name: 'before blockdev-mirror', phase: 'mirror', at: 'source', what: 'blockdev-mirror', when: 'before' },
  { name: 'blockdev-mirror sent', phase: 'mirror', at: 'source', what: 'blockdev-mirror', when: 'sent' },
  { name: 'after blockdev-mirror', phase: 'mirror', at: 'source', what: 'blockdev-mirror', when: 'after' },
  { name: 'converge', phase: 'converge', at: 'source', what: 'query-blockstats', when: 'before' },
  { name: 'before migrate-incoming', phase: 'memory', at: 'destination', what: 'migrate-incoming', when: 'before' },
  { name: 'after migrate-incoming', phase: 'memory', at: 'destination', what: 'migrate-incoming', when: 'after' },
  { name: 'before migrate', phase: 'memory', at: 'source', what: 'migrate', when: 'before' },
  { name: 'after migrate', phase: 'memory', at: 'source', what: 'migrate', when: 'after' },
  { name: 'before the mark handed-over', phase: 'switchover', at: 'source', what: 'mark handed-over', when: 'before', paused: true },
  { name: 'after the mark handed-over', phase: 'switchover', at: 'source', what: 'mark handed-over', when: 'after', paused: true },
  { name: 'before block-job-cancel', phase: 'switchover', at: 'source', what: 'block-job-cancel', when: 'before', paused: true },
  { name: 'block-job-cancel sent', phase: 'switchover', at: 'source', what: 'block-job-cancel', when: 'sent', paused: true },
  { name: 'after block-job-cancel', phase: 'switchover', at: 'source', what: 'block-job-cancel', when: 'after', paused: true },
  { name: 'before job-dismiss', phase: 'switchover', at: 'source', what: 'job-dismiss', when: 'before', paused: true },
  { name: 'after job-dismiss', phase: 'switchover', at: 'source', what: 'job-dismiss', when: 'after', paused: true },
  { name: 'after blockdev-del', phase: 'switchover', at: 'source', what: 'blockdev-del', when: 'after', paused: true },
  { name: 'before migrate-continue', phase: 'switchover', at: 'source', what: 'migrate-continue', when: 'before', paused: true },
  { name: 'migrate-continue sent', phase: 'switchover', at: 'source', what: 'migrate-continue', when: 'sent', paused: true },
  { name: 'after migrate-continue', phase: 'switchover', at: 'source', what: 'migrate-continue', when: 'after', paused: true },
  { name: 'destination completed', phase: 'switchover', at: 'destination', what: 'query-block-exports', when: 'before', after: 'migrate-continue', paused: true },
  { name: 'before block-export-del', phase: 'switchover', at: 'destination', what: 'block-export-del', when: 'before', paused: true },
  { name: 'after block-export-del', phase: 'switchover', at: 'destination', what: 'block-export-del', when: 'after', paused: true },
  { name: 'before the mark about-to-run', phase: 'switchover', at: 'destination', what: 'mark about-to-run', when: 'before', paused: true },
  { name: 'after the mark about-to-run', phase: 'switchover', at: 'destination', what: 'mark about-to-run', when: 'after', paused: true },
  { name: 'before cont', phase: 'switchover', at: 'destination', what: 'cont', when: 'before', paused: true },
  { name: 'cont sent', phase: 'switchover', at: 'destination', what: 'cont', when: 'sent', paused: true },
  { name: 'after cont', phase: 'switchover', at: 'destination', what: 'cont', when: 'after' },
  { name: 'before quit', phase: 'cleanup', at: 'source', what: 'quit', when: 'before' },
  { name: 'after quit', phase: 'cleanup', at: 'source', what: 'quit', when: 'after' },
];

export function stepNamed(name: string): Step {
  const step = STEPS.find((one) => one.name === name);
  if (!step) throw new Error(`there is no step "${name}"; there are: ${STEPS.map((one) => one.name).join(', ')}`);
  return step;
}
