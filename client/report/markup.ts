/** A piece of HTML: everything in it that came from elsewhere is escaped. */
export class Markup {
  constructor(readonly text: string) {}
}

type Value = Markup | Markup[] | string | number | false | undefined;

/** A template for HTML. What is put in is escaped, in text and in quoted attributes alike, unless it is `Markup` itself. */
export function html(parts: TemplateStringsArray, ...values: Value[]): Markup {
  return new Markup(parts.reduce((text, part, index) => `${text}${render(values[index - 1])}${part}`));
}

function render(value: Value): string {
  if (value instanceof Markup) return value.text;
  if (Array.isArray(value)) return value.map(({ text }) => text).join('');
  return value === undefined || value === false ? '' : escape(String(value));
}

export const escape = (text: string) => text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);

/** Not broken into lines, and beside others on a phone. */
const isShort = (cell: Markup | string | number | undefined) => (cell instanceof Markup ? cell.text.replace(/<[^>]*>/g, '') : String(cell ?? '')).length <= 16;

export function tableOf(head: string[], rows: (Markup | string | number | undefined)[][]): Markup {
  // On a phone a row is a block of its own, each cell after its column's name.
  return html`<table><thead><tr>${head.map((title) => html`<th scope="col">${title}</th>`)}</tr></thead><tbody>${rows.map((row) => html`<tr>${row.map((cell, column) => html`<td data-column="${head[column]}"${isShort(cell) && html` class="short"`}>${cell}</td>`)}</tr>`)}</tbody></table>`;
}
