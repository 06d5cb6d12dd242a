import { ApplicationFailure, CancellationScope, condition, setHandler } from '@temporalio/workflow';
import { anyHost, isAway } from './activities';
import { confirmFencedUpdate, type DecisionRecord, type Fence, fenceSchema, type HostWait } from './messages';

/** The host was confirmed fenced: it will not answer, and its copy is never started. */
export const FENCED = Symbol('fenced');

/**
 * Whom a workflow waits for, since only that host can say what became of the guest; and who was confirmed fenced. Takes the update
 * `confirmFenced`, refused unless the host is waited for, and does not answer a last look.
 */
export class Fences {
  private readonly waits = new Map<string, HostWait>();
  private readonly fenced = new Set<string>();

  /** `show` is called whenever who is waited for has changed. */
  constructor(private readonly guest: string, private readonly decisions: DecisionRecord[], private readonly show: (waits: HostWait[]) => void) {
    setHandler(confirmFencedUpdate, (fence: Fence) => this.confirm(fence), { validator: (fence: Fence) => this.validate(fence) });
  }

  has(host: string): boolean {
    return this.fenced.has(host);
  }

  get hosts(): string[] {
    return [...this.fenced].sort();
  }

  /** Says that a host is waited for; the first reason counts until it has answered. */
  wait(host: string, why: string): void {
    if (this.waits.has(host)) return;
    this.waits.set(host, { host, why, since: new Date().toISOString() });
    this.changed();
  }

  answered(host: string): void {
    if (this.waits.delete(host)) this.changed();
  }

  /** Asks a host for as long as it takes, or until it is confirmed fenced, or `enough`: then undefined. */
  async asked<T>(host: string, why: string, ask: () => Promise<T>, enough = () => false): Promise<T | typeof FENCED | undefined> {
    if (this.has(host)) return FENCED;
    const asking = new CancellationScope();
    const answer = asking.run(ask);
    answer.catch(() => undefined);
    this.wait(host, why);
    try {
      return await Promise.race([answer, condition(() => this.has(host) || enough()).then(() => (this.has(host) ? FENCED : undefined))]);
    } finally {
      this.answered(host);
      // Else it would be done when the host returns.
      if (this.has(host)) asking.cancel();
    }
  }

  private validate(fence: Fence): void {
    const { data, error } = fenceSchema.safeParse(fence);
    if (!data) throw refused(error.issues.map(({ path, message }) => `${path.join('.') || 'input'}: ${message}`).join('; '));
    const waiting = [...this.waits.keys()];
    if (!waiting.includes(data.host)) throw refused(`nothing waits for host ${data.host}: ${waiting.length > 0 ? `what is waited for is ${waiting.join(' and ')}` : `no host has to say anything about guest ${this.guest} now`}`);
  }

  private async confirm({ host, author, reason }: Fence): Promise<DecisionRecord> {
    // A host that answers knows more than any person: a restarted agent, or a link that came back, must not cost a guest.
    if (await answers(host, this.guest)) throw refused(`host ${host} answers: it is asked, and nobody needs to vouch for it`);
    if (!this.waits.has(host)) throw refused(`nothing waits for host ${host} any more`);
    const decision = { at: new Date().toISOString(), by: author, what: `confirmFenced ${host}`, why: reason };
    this.decisions.push(decision);
    this.fenced.add(host);
    this.answered(host);
    return decision;
  }

  private changed(): void {
    this.show([...this.waits.values()]);
  }
}

/** Whether the agent of a host takes a task now: within 10 s, or at a `glance` within 2 s. */
export async function answers(host: string, guest: string, how: 'look' | 'glance' = 'look'): Promise<boolean> {
  return await anyHost(host)[how].inspectCopy({ guest }).then(() => true, (error: unknown) => {
    if (isAway(error)) return false;
    throw error;
  });
}

function refused(message: string): ApplicationFailure {
  return ApplicationFailure.nonRetryable(message, 'FenceRefused');
}
