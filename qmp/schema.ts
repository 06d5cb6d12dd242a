/** One entry of `query-qmp-schema`. Type names are masked by QEMU (numbers), so only commands and events can be found by name. */
export interface SchemaEntity {
  name: string;
  'meta-type': 'command' | 'event' | 'object' | 'array' | 'enum' | 'alternate' | 'builtin' | (string & Record<never, never>);
  'arg-type'?: string;
  'ret-type'?: string;
  'element-type'?: string;
  /** Of objects (with a name) and of alternates (without). */
  members?: { name?: string; type?: string }[];
  variants?: { case: string; type: string }[];
}

/**
 * What one QEMU, or storage daemon, can do, from its own `query-qmp-schema`. Distributors patch and back-port, so capabilities are
 * asked for here, never derived from a version number.
 */
export class QmpSchema {
  private readonly entities: ReadonlyMap<string, SchemaEntity>;

  constructor(entities: readonly SchemaEntity[]) {
    this.entities = new Map(entities.map((entity) => [entity.name, entity]));
  }

  hasCommand(name: string): boolean {
    return this.entities.get(name)?.['meta-type'] === 'command';
  }

  /** Whether a command takes an argument: `force`, or with dots one that is nested, `server.tls-creds`, in whichever variant. */
  hasArgument(command: string, path: string): boolean {
    return this.hasCommand(command) && this.hasPath(this.entities.get(command)?.['arg-type'], path.split('.'));
  }

  /** Whether a command's reply has a member; elements of lists are looked into: `query-block-jobs`, `actively-synced`. */
  hasReturnMember(command: string, path: string): boolean {
    return this.hasCommand(command) && this.hasPath(this.entities.get(command)?.['ret-type'], path.split('.'));
  }

  hasEvent(name: string): boolean {
    return this.entities.get(name)?.['meta-type'] === 'event';
  }

  /** Whether an event's data has a member, with dots a nested one. */
  hasEventMember(event: string, path: string): boolean {
    return this.hasEvent(event) && this.hasPath(this.entities.get(event)?.['arg-type'], path.split('.'));
  }

  /** Types refer to themselves (a block node has child nodes), but every such circle passes a named member, and so uses up the path. */
  private hasPath(type: string | undefined, path: readonly string[]): boolean {
    const [name, ...rest] = path;
    if (name === undefined) return true;
    const entity = type === undefined ? undefined : this.entities.get(type);
    switch (entity?.['meta-type']) {
      case 'object':
        return (
          (entity.members ?? []).some((member) => member.name === name && this.hasPath(member.type, rest)) || (entity.variants ?? []).some((variant) => this.hasPath(variant.type, path))
        );
      case 'alternate':
        return (entity.members ?? []).some((member) => this.hasPath(member.type, path));
      case 'array':
        return this.hasPath(entity['element-type'], path);
      default:
        return false;
    }
  }
}
