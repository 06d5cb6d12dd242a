import { html, Markup } from './markup';

/** Readable on a phone and on paper; light on both, since its pictures are. Every colour of text has a contrast of at least 4.5 to 1. */
const STYLE = `
:root { color-scheme: light; --ink: #1f2328; --faint: #57606a; --line: #d8dee4; --soft: #f3f5f8; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: #fff; color: var(--ink); font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; padding-top: .5rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1rem 0 .25rem; }
p { margin: .4rem 0; }
.outcome { padding: .7rem 1rem; border-left: .4rem solid var(--faint); background: var(--soft); font-size: 1.05rem; white-space: pre-line; }
.completed { border-color: #1a7f4b; } .failed, .terminated { border-color: #b42318; } .cancelled, .partly { border-color: #8a6100; } .running, .planned { border-color: #0b5cad; }
.note { color: var(--faint); font-size: .9rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem 1.5rem; margin: 1rem 0; }
dt { color: var(--faint); font-size: .85rem; } dd { margin: 0; font-weight: 600; }
figure { margin: .5rem 0 1rem; } figcaption { font-size: .9rem; color: var(--faint); margin-bottom: .25rem; }
figcaption strong { color: var(--ink); }
svg { display: block; width: 100%; height: auto; } svg.narrow { display: none; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; margin: .5rem 0; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line); }
th { color: var(--faint); font-weight: 600; white-space: nowrap; } td.short { white-space: nowrap; }
code { font: .9em ui-monospace, "DejaVu Sans Mono", monospace; background: var(--soft); padding: .1em .3em; border-radius: 3px; }
.key { display: inline-block; width: 1.6em; border-top: 3px solid; vertical-align: middle; margin: 0 .3em 0 .8em; } .key.dashed { border-top-style: dashed; } .key.block { border-top-width: .8em; }
.number { display: inline-block; min-width: 1.5em; padding: 0 .4em; border-radius: .8em; background: var(--ink); color: #fff; font-size: .8rem; font-weight: 700; text-align: center; }
a { color: #0b5cad; }
details { margin: .5rem 0; } summary { cursor: pointer; }
footer { margin-top: 2rem; border-top: 1px solid var(--line); color: var(--faint); font-size: .85rem; }
@media screen and (max-width: 700px) {
  svg.wide { display: none; } svg.narrow { display: block; }
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  table, tbody, tr, td { display: block; } tr { padding: .5rem 0; border-bottom: 1px solid var(--line); }
  td { border: 0; padding: .1rem 0; } td.short { display: inline-block; margin-right: .9rem; } td:empty { display: none; }
  td[data-column]:not([data-column=""])::before { content: attr(data-column) ": "; color: var(--faint); }
}
@media print {
  @page { margin: 14mm; }
  body { max-width: none; padding: 0; font-size: 10pt; } h2 { break-after: avoid; } h3, figcaption { break-after: avoid; } figure, tr, .outcome, dl { break-inside: avoid; }
  a { color: inherit; text-decoration: none; }
}`;

/** A page that needs nothing but itself: no script, no network. */
export function page(title: string, content: Markup): string {
  return html`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>${title}</title>
<style>${new Markup(STYLE)}</style>
</head>
<body>
<main>
${content}
</main>
<footer><p>Made by vmferry from what Temporal has on record. Times are UTC, by Temporal's clock, unless it says otherwise.</p></footer>
</body>
</html>
`.text;
}

export const utc = (ms: number) => new Date(ms).toISOString().replace('T', ' ').replace(/\.\d+Z$/, ' UTC');
export const clock = (ms: number) => new Date(ms).toISOString().slice(11, 19);

/** Facts in short, those that are known. */
export function factsOf(facts: [string, Markup | string | number | undefined][]): Markup {
  return html`<dl>${facts.flatMap(([name, value]) => (value === undefined ? [] : [html`<div><dt>${name}</dt><dd>${value}</dd></div>`]))}</dl>`;
}

export function section(title: string, content: Markup, id?: string): Markup {
  return html`<section${id === undefined ? undefined : html` id="${id}"`}><h2>${title}</h2>${content}</section>`;
}

export const number = (value: number) => html`<span class="number">${value}</span>`;
export const key = (colour: string, name: string, how: '' | 'dashed' | 'block' = '') => html`<span><span class="key ${how}" style="border-color:${colour}"></span>${name}</span>`;
