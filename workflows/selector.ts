/** One condition on one label. `=` is `in` with one value, `!=` is `notin` with one, as in Kubernetes. */
export type Requirement = { key: string; operator: 'in' | 'notin'; values: string[] } | { key: string; operator: 'exists' | 'absent' };
/** All of them must hold; none selects everything. Plain JSON. */
export type Selector = Requirement[];

/** A selector that cannot be read; the message is one line for whoever wrote it. */
export class InvalidSelector extends Error {
  override readonly name = 'InvalidSelector';
}

/** As in Kubernetes: an optional prefix and a slash, then letters, digits, `-`, `_` and `.`, with a letter or digit at both ends. */
const KEY = /^(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?\/)?[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?$/;
/** Empty, or like the key without its prefix. */
const VALUE = /^(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)?$/;
/** A comma outside of parentheses: no `)` comes before the next `(`. */
const COMMA = /,(?![^(]*\))/;

/**
 * Reads Kubernetes' selector syntax: `rack=r12`, `rack==r12`, `zone!=b`, `gpu`, `!gpu`, `rack in (r1,r2)`, `rack notin (r1)`, joined by commas.
 * Its `<` and `>` are not known. Throws `InvalidSelector`.
 */
export function parseSelector(text: string): Selector {
  if (text.trim() === '') return [];
  return text.split(COMMA).map((part) => {
    const read = parseRequirement(part.trim());
    if (typeof read === 'string') throw new InvalidSelector(`the selector ${JSON.stringify(text)} cannot be read: ${read}`);
    return read;
  });
}

/** As Kubernetes has it, `!=` and `notin` also hold where the label is missing. */
export function matches(selector: Selector, labels: Record<string, string>): boolean {
  return selector.every((requirement) => {
    // A label named `constructor` is one only if it was given.
    const value = Object.hasOwn(labels, requirement.key) ? labels[requirement.key] : undefined;
    switch (requirement.operator) {
      case 'in':
        return value !== undefined && requirement.values.includes(value);
      case 'notin':
        return value === undefined || !requirement.values.includes(value);
      case 'exists':
        return value !== undefined;
      case 'absent':
        return value === undefined;
    }
  });
}

/** A requirement, or what is wrong with it and how to put it right. */
function parseRequirement(part: string): Requirement | string {
  if (part === '') return 'a comma has nothing on one side: remove it';
  const set = /^(\S+?)\s+(in|notin)\s*\((.*)\)$/.exec(part);
  if (set) {
    const values = set[3]!.split(',').map((value) => value.trim());
    if (values.includes('')) return `${JSON.stringify(part)} has an empty value: write ${set[1]} ${set[2]} (a,b), or ${set[1]}= for the empty label`;
    return checked({ key: set[1]!, operator: set[2] as 'in' | 'notin', values }, part);
  }
  const equality = /^([^=!]*?)\s*(==?|!=)\s*(.*)$/.exec(part);
  if (equality) return checked({ key: equality[1]!, operator: equality[2] === '!=' ? 'notin' : 'in', values: [equality[3]!] }, part);
  if (/[()]/.test(part)) return `${JSON.stringify(part)} is not a list in parentheses: write it as rack in (r1,r2) or rack notin (r1,r2)`;
  if (/[<>]/.test(part)) return `${JSON.stringify(part)} compares numbers, which is not known here: list the values, as in cores in (32,64)`;
  if (/\s(in|notin)\b/.test(part)) return `${JSON.stringify(part)} has no list: write it in parentheses, as in rack in (r1,r2)`;
  const absent = part.startsWith('!');
  return checked({ key: absent ? part.slice(1).trim() : part, operator: absent ? 'absent' : 'exists' }, part);
}

function checked(requirement: Requirement, part: string): Requirement | string {
  const { key } = requirement;
  if (key === '') return `${JSON.stringify(part)} names no label: put one before the operator, as in rack=r1`;
  if (/\s/.test(key)) return `${JSON.stringify(part)} has a space in it: join requirements with commas, as in rack=r1,zone=b`;
  if (!KEY.test(key)) return `${JSON.stringify(key)} is not the name of a label: use letters, digits, "-", "_" and ".", beginning and ending with a letter or digit`;
  if ('values' in requirement) {
    const bad = requirement.values.find((value) => !VALUE.test(value));
    if (bad !== undefined && /\s/.test(bad)) return `${JSON.stringify(bad)} has a space in it: join requirements with commas, as in rack=r1,zone=b`;
    if (bad !== undefined) return `${JSON.stringify(bad)} is not the value of a label: use letters, digits, "-", "_" and ".", beginning and ending with a letter or digit`;
  }
  return requirement;
}
