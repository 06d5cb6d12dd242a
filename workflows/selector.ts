/** Labels of hosts, in the syntax of Kubernetes' label selectors: `rack=r12, zone!=b, gpu, !old, rack in (r1,r2), rack notin (r3)`; a comma is "and". */
export type Selector = { key: string; test: 'in' | 'notin' | 'exists' | 'absent'; values: string[] }[];

/** A selector that cannot be read; the message names the part and says how it should be. */
export class InvalidSelector extends Error {
  override readonly name = 'InvalidSelector';
}

const NAME = '[A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9])?';
const EQUAL = new RegExp(`^(${NAME})\\s*(==|=|!=)\\s*(${NAME})$`);
const SET = new RegExp(`^(${NAME})\\s+(in|notin)\\s+\\(([^()]*)\\)$`);
const EXISTS = new RegExp(`^(!?)\\s*(${NAME})$`);

/** Reads a selector; an empty one selects everything. Throws `InvalidSelector`. */
export function parseSelector(text: string): Selector {
  // A comma inside parentheses belongs to its list.
  const parts = text.trim() === '' ? [] : text.split(/,(?![^(]*\))/).map((part) => part.trim());
  return parts.map((part) => {
    const equal = EQUAL.exec(part);
    if (equal) return { key: equal[1]!, test: equal[2] === '!=' ? 'notin' : 'in', values: [equal[3]!] };
    const set = SET.exec(part);
    const values = set?.[3]!.split(',').map((value) => value.trim());
    if (set && values!.every((value) => new RegExp(`^${NAME}$`).test(value))) return { key: set[1]!, test: set[2] as 'in', values: values! };
    const exists = EXISTS.exec(part);
    if (exists) return { key: exists[2]!, test: exists[1] ? 'absent' : 'exists', values: [] };
    throw new InvalidSelector(`selector "${text}": "${part}" is none of key=value, key!=value, key, !key, key in (a,b), key notin (a,b), joined by commas`);
  });
}

export function matches(selector: Selector, labels: Record<string, string>): boolean {
  return selector.every(({ key, test, values }) => {
    const value = Object.hasOwn(labels, key) ? labels[key] : undefined;
    switch (test) {
      case 'in':
        return value !== undefined && values.includes(value);
      case 'notin':
        return value === undefined || !values.includes(value);
      case 'exists':
        return value !== undefined;
      case 'absent':
        return value === undefined;
    }
  });
}
