/** A leaf of a schema, or a list or record, as a table of our pages names it: `disks[].id`, `roots.NAME.path`. */
export interface Field {
  path: string;
  /** As the table shows it: the default as code, `required`, `` required in `parent` `` of an optional parent, or – for an optional one. */
  shownDefault: string;
  /** Of an enumeration. */
  values: string[];
}

/** What is read of a zod schema. */
interface Schema {
  def: {
    type: string;
    innerType?: Schema;
    element?: Schema;
    valueType?: Schema;
    options?: Schema[];
    shape?: Record<string, Schema>;
    entries?: Record<string, string>;
    defaultValue?: unknown;
  };
}

interface Place {
  path: string;
  /** The value if it is left out, by its own default or a parent's. */
  value?: unknown;
  optional?: boolean;
  /** The optional parent. */
  within?: string;
}

/** Every field that a user may write, in the schema's order. */
export function fieldsOf(schema: unknown): Field[] {
  return walk(schema as Schema, { path: '' });
}

function walk({ def }: Schema, place: Place): Field[] {
  const { path } = place;
  const below = (key: string) => (path === '' ? key : `${path}.${key}`);
  switch (def.type) {
    case 'optional':
      return walk(def.innerType!, { ...place, optional: true });
    case 'default':
      return walk(def.innerType!, { ...place, value: place.value ?? def.defaultValue });
    case 'prefault':
      return walk(def.innerType!, place);
    case 'object':
      return Object.entries(def.shape!).flatMap(([key, child]) => walk(child, { path: below(key), value: (place.value as Record<string, unknown> | undefined)?.[key], ...(place.optional && { within: path }) }));
    case 'array':
      return [leaf(place), ...(def.element!.def.type === 'object' ? walk(def.element!, { path: `${path}[]` }) : [])];
    case 'record':
      return [leaf(place), ...(def.valueType!.def.type === 'union' ? walk(def.valueType!, { path: below('NAME') }) : [])];
    case 'union': {
      const objects = def.options!.filter((option) => option.def.type === 'object');
      return objects.length === 0 ? [leaf(place)] : objects.flatMap((object) => walk(object, { ...place, optional: true }));
    }
    case 'string':
    case 'number':
    case 'boolean':
    case 'literal':
    case 'pipe':
      return [leaf(place)];
    case 'enum':
      return [{ ...leaf(place), values: Object.values(def.entries!) }];
    default:
      throw new Error(`${path}: the docs' test does not know the schema type "${def.type}": teach it`);
  }
}

function leaf({ path, value, optional, within }: Place): Field {
  const code = (text: string) => `\`${text}\``;
  const shownDefault = value !== undefined ? code(typeof value === 'string' && value !== '' ? value : JSON.stringify(value)) : optional ? '–' : within !== undefined ? `required in ${code(within)}` : 'required';
  return { path, shownDefault, values: [] };
}
