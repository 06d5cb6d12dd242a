import { readFileSync } from 'node:fs';

export interface Table {
  /** The heading above it. */
  section: string;
  head: string[];
  rows: string[][];
}

/** What a page of ours consists of, as far as tests ask. Text in fences is no inline code, and has no links and no tables. */
export interface Page {
  text: string;
  headings: string[];
  tables: Table[];
  fences: { language: string; text: string }[];
  /** Every inline code, without its backticks. */
  code: string[];
  links: string[];
}

export function readPage(path: string): Page {
  const text = readFileSync(path, 'utf8');
  const page: Page = { text, headings: [], tables: [], fences: [], code: [], links: [] };
  let fence: { language: string; text: string } | undefined;
  let table: Table | undefined;
  for (const line of text.split('\n')) {
    const [, language] = /^```(.*)$/.exec(line) ?? [];
    if (language !== undefined) {
      if (fence) page.fences.push(fence);
      fence = fence ? undefined : { language, text: '' };
      continue;
    }
    if (fence) {
      fence.text += `${line}\n`;
      continue;
    }
    const [, heading] = /^#+ (.*)$/.exec(line) ?? [];
    if (heading !== undefined) page.headings.push(heading);
    page.code.push(...[...line.matchAll(/`([^`]+)`/g)].map((match) => match[1]!));
    page.links.push(...[...line.matchAll(/\]\(([^)]+)\)/g)].map((match) => match[1]!));
    if (!line.startsWith('|')) table = undefined;
    else if (!table) page.tables.push((table = { section: page.headings.at(-1) ?? '', head: cellsOf(line), rows: [] }));
    else if (!/^\|[-|:\s]+\|$/.test(line)) table.rows.push(cellsOf(line));
  }
  if (fence) throw new Error(`${path}: a fence is never closed`);
  return page;
}

function cellsOf(line: string): string[] {
  return line.split('|').slice(1, -1).map((cell) => cell.trim());
}

/** The one table with this first column below this heading; every row has all its cells filled, or left empty on purpose. */
export function tableOf(page: Page, section: string, firstColumn: string): string[][] {
  const found = page.tables.filter((table) => table.section === section && table.head[0] === firstColumn);
  if (found.length !== 1) throw new Error(`there are ${found.length} tables of "${firstColumn}" below "${section}"`);
  const { head, rows } = found[0]!;
  for (const row of rows) if (row.length !== head.length) throw new Error(`a row of "${firstColumn}" below "${section}" has ${row.length} cells: ${row.join(' | ')}`);
  return rows;
}

/** The inline codes of a cell. */
export const codesIn = (cell: string): string[] => [...cell.matchAll(/`([^`]+)`/g)].map((match) => match[1]!);

/** The anchor that GitHub gives a heading. */
export const anchorOf = (heading: string): string => heading.toLowerCase().replace(/[^\p{L}\p{N} _-]/gu, '').replaceAll(' ', '-');
