import type { Client } from '@temporalio/client';
import type { Command } from 'commander';
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { basename, dirname, join, normalize, relative, resolve } from 'node:path';
import { parse as parseYaml } from 'yaml';
import { createHostActivities } from '../../activities';
import type { HostDependencies } from '../../activities/context';
import { ERRORS } from '../../activities/errors';
import { fleetActivities } from '../../activities/fleet';
import * as library from '../../client';
import { buildProgram } from '../../client/cli';
import { EXIT } from '../../client/exit-codes';
import { OUR_MONITOR } from '../../hypervisor/argument-rules';
import { definitionSchema } from '../../hypervisor/definition';
import { hostConfigSchema } from '../../hypervisor/host-config';
import { mirrorNames } from '../../hypervisor/mirrors';
import { SUPERVISION_TIMES } from '../../workflows/convergence';
import { MOST_USES, RUNGS, SETTLE_MS, THROTTLE_TO } from '../../workflows/divergence';
import { evacuateFleetSchema, evacuateHostSchema } from '../../workflows/evacuation';
import { VERDICTS } from '../../workflows/lasting-verdict';
import { qemuMemorySettings } from '../../workflows/memory-settings';
import { convergencePolicySchema, migrateVmSchema, moveColdSchema, SEARCH_ATTRIBUTES } from '../../workflows/messages';
import { decideOwner, type DestinationFate, type SourceFate } from '../../workflows/ownership';
import { PHASES } from '../../workflows/phases';
import { steerSchema } from '../../workflows/steer';
import { RULES } from '../model/switchover-model';
import { anchorOf, codesIn, type Page, readPage, tableOf } from './markdown';
import { fieldsOf } from './schema-fields';

/** The pages say what the code does. Whoever adds a field, an error, a command or a phase finds here that a page lacks it. */
const ROOT = resolve(__dirname, '../..');
const FOLDERS = readdirSync(ROOT, { withFileTypes: true }).filter((entry) => entry.isDirectory() && !['node_modules', 'dist', 'coverage', '.git'].includes(entry.name)).map(({ name }) => name);
const FILES = FOLDERS.flatMap((folder) => filesBelow(join(ROOT, folder)));
const PRODUCT = ['qmp', 'hypervisor', 'activities', 'workflows', 'workers', 'client'];

const operating = readPage(join(ROOT, 'docs/operating.md'));
const architecture = readPage(join(ROOT, 'docs/architecture.md'));
const divergence = readPage(join(ROOT, 'docs/divergence.md'));
const fleet = readPage(join(ROOT, 'docs/fleet.md'));
const PAGES: [string, Page][] = ['README.md', 'CONTRIBUTING.md', ...readdirSync(join(ROOT, 'docs')).filter((file) => file.endsWith('.md')).map((file) => `docs/${file}`)].map((path) => [path, readPage(join(ROOT, path))]);

function filesBelow(folder: string): string[] {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => (entry.isDirectory() ? filesBelow(join(folder, entry.name)) : [relative(ROOT, join(folder, entry.name))]));
}
const read = (path: string) => readFileSync(join(ROOT, path), 'utf8');
const sources = (...folders: string[]) => FILES.filter((path) => folders.includes(path.split('/')[0]!) && path.endsWith('.ts'));
const matches = (paths: string[], pattern: RegExp) => [...new Set(paths.flatMap((path) => [...read(path).matchAll(pattern)].map((match) => match[1]!)))].sort();
/** The text between a heading and the next. */
const sectionOf = ({ text }: Page, heading: string) => new RegExp(`^#+ ${heading}\n([^]*?)(?=^#+ |(?![^]))`, 'm').exec(text)![1]!;
const inSeconds = (ms: number) => `${ms / 1000} s`;
const unquoted = (cell: string) => cell.replace(/^`(.*)`$/, '$1');

describe('docs/operating.md', () => {
  test.each([
    ['an agent\'s configuration', 'Agent', hostConfigSchema],
    ['a definition', 'Guests', definitionSchema],
    ['migrateVm\'s input', 'From another SDK', migrateVmSchema],
  ])('has every field of %s with its default, and no other', (_what, section, schema) => {
    const rows = tableOf(operating, section, 'field');
    const fields = fieldsOf(schema);
    expect(rows.map(([field, shownDefault]) => `${field} ${shownDefault}`)).toEqual(fields.map(({ path, shownDefault }) => `\`${path}\` ${shownDefault}`));
    for (const [index, { path, values }] of fields.entries()) {
      const meaning = rows[index]![2]!;
      expect({ path, meaning }).not.toEqual({ path, meaning: '' });
      expect({ path, values: codesIn(meaning) }).toEqual({ path, values: expect.arrayContaining(values) });
    }
  });

  test('has examples that are valid', () => {
    const yaml = operating.fences.filter(({ language }) => language === 'yaml').map(({ text }) => parseYaml(text) as Record<string, unknown>);
    const json = operating.fences.filter(({ language }) => language === 'json').map(({ text }) => JSON.parse(text) as unknown);
    const [temporal, agent, guest, ...more] = yaml;
    expect(more).toEqual([]);
    const config = hostConfigSchema.parse(agent);
    const definition = definitionSchema.parse(guest);
    expect(json.map((input) => migrateVmSchema.parse(input).vm)).toEqual([definition.name]);
    expect(convergencePolicySchema.partial().parse(config.migration)).toMatchObject(config.migration);
    const usedRoots = [...JSON.stringify(definition).matchAll(/\$\{([a-z-]+)\}/g)].map((match) => match[1]!);
    expect(Object.keys(config.roots)).toEqual(expect.arrayContaining(usedRoots));
    // What we give the servers that we start ourselves is what the page tells others to give theirs.
    const ours = [...read('workers/temporal-server.ts').matchAll(/'(history\.\w+)=(\d+)'/g)].map((match) => [match[1], [{ value: Number(match[2]) }]]);
    expect(ours).not.toEqual([]);
    expect(Object.entries(temporal!)).toEqual(ours);
  });

  test('says which fields a host may have its own defaults for', () => {
    const fields = tableOf(operating, 'From another SDK', 'field').map(([field]) => unquoted(field!));
    expect(fields.slice(0, fields.indexOf('vm'))).toEqual(fieldsOf(convergencePolicySchema).map(({ path }) => path));
  });

  test('has every field of the result, and every kind of workflow in the UI', () => {
    const [, result] = /export interface MigrationResult \{\n(.*?)\n\}/s.exec(read('workflows/messages.ts'))!;
    const fields = [...result!.matchAll(/^ {2}(\w+)\??:/gm)].map((match) => match[1]!);
    expect(fields).toContain('decisions');
    expect(codesIn(/The result has (.*?);/s.exec(sectionOf(operating, 'From another SDK'))![1]!)).toEqual(fields);
    const kinds = matches(sources('workflows', 'client'), /`([a-z]+)\/\$\{/g);
    expect(kinds).toEqual(expect.arrayContaining(['migrate', 'leftover']));
    for (const kind of kinds) expect(sectionOf(operating, 'In the Temporal UI')).toContain(`\`${kind}/`);
  });

  test('has every error type with its advice, and whether it is retried', () => {
    const rows = tableOf(operating, 'Failure signatures', 'type').filter(([type]) => Object.hasOwn(ERRORS, unquoted(type!)));
    expect(rows).toEqual(Object.entries(ERRORS).map(([type, { retried, advice }]) => [`\`${type}\``, retried ? 'yes' : 'no', advice]));
  });

  test('has every other type that a user may meet, and none that is never thrown', () => {
    const thrown = sources('workflows', 'activities', 'client')
      .flatMap((path) => read(path).split('\n'))
      .filter((line) => /nonRetryable\(|ApplicationFailure\.create\(|VmferryError\(|const type =|known \? name/.test(line))
      .flatMap((line) => [...line.matchAll(/'([A-Z][a-z]+(?:[A-Z][a-z]+)*)'/g)].map((match) => match[1]!));
    const exported = Object.entries(library).filter(([name, value]) => name !== 'VmferryError' && value.prototype instanceof Error).map(([name]) => name);
    const others = [...new Set([...thrown, ...exported])].filter((type) => !Object.hasOwn(ERRORS, type));
    const listed = tableOf(operating, 'Failure signatures', 'type').map(([type]) => unquoted(type!)).filter((type) => !Object.hasOwn(ERRORS, type));
    expect(listed.sort()).toEqual(others.sort());
  });

  test('has every exit code with its name', () => {
    expect(tableOf(operating, 'Commands', 'code').map(([code, name]) => [unquoted(name!), Number(code)])).toEqual(Object.entries(EXIT));
  });

  test('has every command of the command line with all its arguments and options, and no other', () => {
    const listed = Object.fromEntries(tableOf(operating, 'Commands', 'command').map(([command, options, does]) => [unquoted(command!), does === '' ? 'says nothing' : codesIn(options!).sort()]));
    const built = Object.fromEntries(leafCommands(buildProgram(), 'vmferry').map(([line, command]) => [line, longOptions(command).sort()]));
    expect(listed).toEqual(built);
  });

  test('has the global options, the variables of the environment and the search attributes', () => {
    const variables = matches([...sources(...PRODUCT, 'demo'), 'scripts/setup.sh', 'bin/vmferry'], /\b(VMFERRY_[A-Z]+)\b/g);
    const attributes = Object.values(SEARCH_ATTRIBUTES).map(({ name }) => name);
    const words = operating.code.flatMap((code) => code.split(/[\s=]/));
    expect(words).toEqual(expect.arrayContaining([...longOptions(buildProgram()), ...variables, ...attributes]));
  });
});

describe('docs/fleet.md', () => {
  test('has every field of an evacuation with its default, and no other', () => {
    const fields = [...new Map([...fieldsOf(evacuateHostSchema), ...fieldsOf(evacuateFleetSchema)].filter(({ path }) => !path.startsWith('migration.')).map((field) => [field.path, field])).values()];
    const rows = tableOf(fleet, 'From another SDK', 'field');
    expect(rows.map(([field, shownDefault]) => `${field} ${shownDefault}`)).toEqual(fields.map(({ path, shownDefault }) => `\`${path}\` ${shownDefault}`));
    for (const [index, { path, values }] of fields.entries()) expect({ path, values: codesIn(rows[index]![2]!) }).toEqual({ path, values: expect.arrayContaining(values) });
  });

  test('has every update and query of an evacuation, and the fields of a stopped guest\'s move', () => {
    const defined = (what: string) => [...new Set([...read('workflows/evacuation.ts').matchAll(new RegExp(`define${what}<.*>\\('(\\w+)'\\)`, 'g'))].map((match) => match[1]!))];
    expect(tableOf(fleet, 'From another SDK', 'update').map(([update]) => unquoted(update!)).sort()).toEqual(defined('Update').sort());
    const section = sectionOf(fleet, 'From another SDK');
    expect(codesIn(/^Queries: (.*?)\. /m.exec(section)![1]!)).toEqual(defined('Query'));
    expect(codesIn(/with these fields of\n`migrateVm`'s input: (.*)\.$/m.exec(section)![1]!)).toEqual(fieldsOf(moveColdSchema).map(({ path }) => path));
  });
});

describe('docs/architecture.md', () => {
  const steps = tableOf(architecture, 'A migration, step by step', 'phase');

  test('has the phases in their order', () => {
    expect(steps.map(([phase]) => unquoted(phase!))).toEqual([...PHASES]);
  });

  test('names every activity, and an undo only if it is one', () => {
    const activities = Object.keys({ ...createHostActivities({ host: { store: {} } } as unknown as HostDependencies), ...fleetActivities({} as Client) });
    expect(architecture.code).toEqual(expect.arrayContaining(activities));
    for (const [phase, , activity, , undo] of steps) for (const name of [...codesIn(activity!), ...codesIn(undo!)]) expect({ phase, name, known: activities.includes(name) }).toEqual({ phase, name, known: true });
  });

  test('has the imports between folders as they are', () => {
    const listed = Object.fromEntries(tableOf(architecture, 'Folders and imports', 'folder').map(([folder, , values, types]) => [codesIn(folder!)[0], { values: codesIn(values!).sort(), types: codesIn(types!).sort() }]));
    expect(listed).toEqual(Object.fromEntries(PRODUCT.map((folder) => [`${folder}/`, importsOf(folder)])));
  });

  test('has the ownership table that the workflow follows', () => {
    const decided = ([source, destination]: [SourceFate, DestinationFate]) => {
      try {
        return `\`${decideOwner(source, destination)}\``;
      } catch {
        return 'an error';
      }
    };
    const all = (['running', 'completed', 'gone'] as const).flatMap((source) => (['running', 'dead', 'dead-with-marker'] as const).map((destination): [SourceFate, DestinationFate] => [source, destination]));
    const listed = tableOf(architecture, 'Who owns the guest', 'source').map(([source, destination, decision]) => `${source} ${destination}: ${decision}`);
    expect(listed.sort()).toEqual(all.map((fates) => `\`${fates[0]}\` \`${fates[1]}\`: ${decided(fates)}`).sort());
  });

  test('gives every rule a place in the code and a test', () => {
    const rules = tableOf(architecture, 'Rules', 'rule');
    expect(rules.map(([rule]) => rule)).toEqual(Object.keys(RULES).filter((rule) => /^R\d+$/.test(rule)));
    const titles = matches(sources('test'), /\btest\(\s*['"`](R\d+[^:]*):/g).flatMap((title) => title.split(/,\s*/));
    // The page says of R9 that only the model has it: there each rule that is left out must do harm.
    const onlyModelled = /(R\d+) so far only in the model/.exec(architecture.text)?.[1];
    for (const [rule, , where] of rules) expect({ rule, tested: titles.includes(rule!) || (rule === 'R9' && rule === onlyModelled), inCode: codesIn(where!).some((code) => code.includes('#')) }).toEqual({ rule, tested: true, inCode: true });
  });

  test('names every state file, run file, and thing that we make', () => {
    const stateFiles = matches([...sources('hypervisor'), 'workers/host-agent.ts'], /'([a-z-]+\.(?:json|yaml))'/g);
    const runFiles = matches(sources('hypervisor'), /['/]([a-z-]+\.(?:sock|pid|log))'/g);
    expect(stateFiles).toEqual(expect.arrayContaining(['ownership.json', 'lease-port.json']));
    expect(runFiles).toEqual(expect.arrayContaining(['qmp.sock', 'qemu.pid']));
    expect(architecture.code.map((code) => basename(code))).toEqual(expect.arrayContaining([...stateFiles, ...runFiles]));
    const made = tableOf(architecture, 'Names of what we make', 'name').flatMap(([name]) => codesIn(name!));
    expect(made).toEqual(expect.arrayContaining([...Object.values(mirrorNames('ATTEMPT', 'N' as unknown as number)), OUR_MONITOR]));
    for (const kind of matches(sources('hypervisor'), /['"`](?:\$\{OURS\}|vmferry-)([a-z]+)/g)) expect({ kind, named: made.some((name) => `${name}-`.startsWith(`vmferry-${kind}-`)) }).toEqual({ kind, named: true });
  });
});

describe('docs/divergence.md', () => {
  const steers = steerSchema.options.map(({ shape }) => ({ name: shape.do.value, takes: Object.keys(shape).filter((key) => !['do', 'author', 'reason'].includes(key)) }));

  test('has the verdicts from best to worst, and how long each must last', () => {
    const { lastsMs, calmMs } = SUPERVISION_TIMES;
    const told = { converging: inSeconds(calmMs), hovering: inSeconds(lastsMs), diverging: inSeconds(lastsMs), stalled: 'at once', failed: 'at once' };
    expect(tableOf(divergence, 'Verdicts', 'verdict').map(([verdict, says, after]) => [unquoted(verdict!), says === '' ? 'says nothing' : after])).toEqual(VERDICTS.map((verdict) => [verdict, told[verdict]]));
  });

  test('has every source of trouble in the words of the messages', () => {
    const code = read('workflows/convergence.ts');
    const [, union] = /export type TroubleSource =(.*?);/s.exec(code)!;
    const words = new Map([...code.matchAll(/^ {2}'?([a-z-]+)'?: (?:'((?:: .*?)?)'|"(: .*?)"),$/gm)].map((match) => [match[1]!, (match[2] ?? match[3]!).replace(/^: /, '')]));
    const listed = tableOf(divergence, 'Trouble sources', 'source');
    expect(listed.map(([source, , inWords]) => [unquoted(source!), inWords])).toEqual([...union!.matchAll(/'([a-z-]+)'/g)].map((match) => [match[1]!, words.get(match[1]!)]));
    for (const [, verdicts, , lookAt] of listed) expect({ known: codesIn(verdicts!).filter((verdict) => (VERDICTS as readonly string[]).includes(verdict)), lookAt }).toEqual({ known: codesIn(verdicts!), lookAt: expect.stringMatching(/./) });
  });

  test('has the rungs from the mildest to the most drastic, and how long each is left alone', () => {
    const rungs = tableOf(divergence, 'The ladder', 'rung');
    expect(rungs.map(([rung, , , , settles]) => [unquoted(rung!), settles])).toEqual(RUNGS.map((rung) => [rung, inSeconds(SETTLE_MS[rung])]));
    for (const row of rungs) expect(row).not.toContain('');
  });

  test('has the numbers of the code', () => {
    const constant = (path: string, name: string) => Number(new RegExp(`const ${name} = ([\\d._]+)`).exec(read(path))![1]!.replaceAll('_', ''));
    const percent = (part: number) => `${part * 100} %`;
    const supervision = (name: string) => constant('workflows/convergence.ts', name);
    const expected: Record<string, string[]> = {
      'What is watched': [`${constant('activities/convergence.ts', 'SAMPLE_MS')} ms`, `${constant('activities/convergence.ts', 'GATE_SAMPLE_MS')} ms`, inSeconds(SUPERVISION_TIMES.windowMs)],
      Verdicts: [percent(supervision('FALLING')), percent(supervision('RISING')), percent(supervision('BUDGET_LEFT_OVER')), `${supervision('NEAR_BYTES')} MiB`, `${SUPERVISION_TIMES.nearMs} ms`, inSeconds(SUPERVISION_TIMES.stallMs), `${SUPERVISION_TIMES.flapMemoryMs / 60_000} minutes`, inSeconds(constant('workflows/lasting-verdict.ts', 'MOST_PATIENT') * SUPERVISION_TIMES.lastsMs)],
      'Trouble sources': [percent(supervision('CAP_USED')), inSeconds(constant('workflows/convergence-loop.ts', 'RESTART_PAUSE_MS'))],
      'The gate': [inSeconds(SUPERVISION_TIMES.gateSpanMs), inSeconds(SUPERVISION_TIMES.recentMs).replace(/^1 s$/, 'the last second'), inSeconds(SUPERVISION_TIMES.leadMs), `${SUPERVISION_TIMES.sampleLagMs} ms`, `${supervision('DRAIN_OVERHEAD_MS')} ms`, `${constant('workflows/disk-trend.ts', 'UNKNOWN_LINK_BYTES_PER_SECOND')} MiB/s`, `${constant('hypervisor/mirrors.ts', 'BUFFER_BYTES')} MiB`],
      'The ladder': [percent(THROTTLE_TO), `${['no time', 'once', 'twice', 'three times'][MOST_USES]} in all`],
      'The re-armed switch': [percent(constant('hypervisor/copy-mode.ts', 'THROTTLE_TO')), percent(constant('hypervisor/copy-mode.ts', 'DRAIN_PART')), inSeconds(constant('hypervisor/copy-mode.ts', 'CATCH_UP_MS'))],
      Memory: [`${constant('activities/memory-watch.ts', 'SAMPLE_MS')} ms`, percent(constant('activities/memory-watch.ts', 'MOST_FOR_MEMORY')), percent(constant('workflows/memory-convergence.ts', 'SHRINKS_BELOW'))],
    };
    for (const [heading, numbers] of Object.entries(expected)) expect({ heading, lacks: numbers.filter((number) => !sectionOf(divergence, heading).replace(/\s+/g, ' ').includes(number)) }).toEqual({ heading, lacks: [] });
    expect(constant('workflows/convergence-loop.ts', 'DISKS_PART')).toBe(0.5);
  });

  test('has every policy, and every deadline with its default', () => {
    const fields = fieldsOf(convergencePolicySchema);
    expect(tableOf(divergence, 'Policies', '`onDivergence`').map(([policy]) => unquoted(policy!))).toEqual(fields.find(({ path }) => path === 'onDivergence')!.values);
    const deadlines = tableOf(divergence, 'Policies', 'deadline').map(([field, shown]) => `${unquoted(field!)} ${codesIn(shown!)[0]}`);
    expect(deadlines.sort()).toEqual(fields.filter(({ path }) => path.endsWith('Seconds')).map(({ path, shownDefault }) => `${path} ${unquoted(shownDefault)}`).sort());
    expect(divergence.code).toEqual(expect.arrayContaining(fields.map(({ path }) => path.replace('memory.', ''))));
  });

  test('has every steer with what it takes and when it is refused, on the command line too', () => {
    const listed = tableOf(divergence, 'Steering', 'steer');
    expect(listed.map(([steer, takes]) => ({ name: unquoted(steer!), takes: codesIn(takes!) }))).toEqual(steers);
    for (const [steer, , does, refused] of listed) expect({ steer, says: does !== '' && (refused !== '' || steer === '`abort`') }).toEqual({ steer, says: true });
    const [, command] = leafCommands(buildProgram(), 'vmferry').find(([line]) => line.startsWith('vmferry steer'))!;
    expect(command.registeredArguments[1]!.description).toBe(steers.map(({ name }) => name).join(', '));
    expect(divergence.fences.filter(({ language }) => language === 'json').map(({ text }) => steerSchema.safeParse(JSON.parse(text)).success)).toEqual([true]);
  });

  test('has every setting of the memory by its name in QEMU', () => {
    const rows = tableOf(divergence, 'Memory', 'field of `memory`').map(([fields, names]) => [codesIn(fields!), codesIn(names!)] as const);
    const fields = fieldsOf(convergencePolicySchema).flatMap(({ path }) => (path.startsWith('memory.') ? [path.replace('memory.', '')] : []));
    expect(rows.flatMap(([ours]) => ours).sort()).toEqual([...fields].sort());
    for (const [index, field] of rows.flatMap(([ours]) => ours).entries()) {
      const { capabilities, parameters } = qemuMemorySettings({ onDivergence: 'ask', memory: { [field]: 1 } });
      expect({ field, qemu: rows.flatMap(([, names]) => names)[index] }).toEqual({ field, qemu: Object.keys({ ...capabilities, ...parameters })[0] ?? 'max-bandwidth' });
    }
  });
});

test('README.md stays short', () => expect(read('README.md').split('\n').length).toBeLessThan(80));

describe.each(PAGES)('%s', (path, page) => {
  test('links only to what is there', () => {
    const broken = page.links.filter((link) => !/^[a-z]+:/.test(link)).filter((link) => {
      const [file, anchor] = link.split('#') as [string, string?];
      const target = file === '' ? path : normalize(join(dirname(path), file));
      if (!existsSync(join(ROOT, target))) return true;
      if (anchor === undefined) return false;
      const { headings, text } = readPage(join(ROOT, target));
      return !headings.map(anchorOf).includes(anchor) && !text.includes(`<a id="${anchor}">`);
    });
    expect(broken).toEqual([]);
  });

  test('names only files, folders and symbols that are there', () => {
    const wrong = page.code.flatMap((code) => code.split(' ')).filter((word) => looksLikeOurs(word) && !isThere(word));
    expect(wrong).toEqual([]);
  });

  test('shows only commands, options and npm scripts that exist', () => {
    const lines = [...page.code, ...page.fences.filter(({ language }) => language === '').flatMap(({ text }) => text.split('\n'))].map((line) => line.replace(/\s#.*$/, ''));
    const { scripts } = JSON.parse(read('package.json')) as { scripts: Record<string, string> };
    const wrong = lines.flatMap((line) => line.split('&&')).filter((line) => {
      const [, script] = /\bnpm (?:run )?([a-z:-]+)/.exec(line) ?? [];
      if (script !== undefined && script !== 'install' && !Object.hasOwn(scripts, script)) return true;
      const [, words] = /(?:^|[\s=])(?:\S*bin\/)?vmferry\s+(\S.*)$/.exec(line) ?? [];
      return words !== undefined && commandProblem(words.trim().split(/\s+/)) !== undefined;
    });
    expect(wrong).toEqual([]);
    const decisions = lines.flatMap((line) => /\bvmferry steer \S+ ([a-z-]+)/.exec(line)?.[1] ?? []);
    expect(decisions.filter((decision) => !steerSchema.options.some(({ shape }) => shape.do.value === decision))).toEqual([]);
  });
});

test('a wrong path, symbol, command or option is noticed', () => {
  expect(['hypervisor/handover.ts', 'hypervisor/handover.ts#handOver', 'qmp/', 'errors.ts', 'bin/vmferry'].filter((word) => !looksLikeOurs(word) || !isThere(word))).toEqual([]);
  expect(['hypervisor/gone.ts', 'hypervisor/handover.ts#handedOver', 'nowhere.ts', 'elsewhere/a.ts', 'docs/gone.md'].filter((word) => !looksLikeOurs(word) || isThere(word))).toEqual([]);
  expect([['migrate', 'x', '--to', 'y'], ['--namespace', 'n', 'vm', 'list', '--json'], ['--help']].map(commandProblem)).toEqual([undefined, undefined, undefined]);
  expect([['move', 'x'], ['vm', 'list', '--colour'], ['vm', 'begin', 'x'], ['migrate', 'x', '--on-divergence', 'hope']].map(commandProblem)).toEqual(['move', '--colour', 'begin', 'hope']);
});

/** `folder/file`, `file.ts` or `file#symbol`, of this repository. */
function looksLikeOurs(word: string): boolean {
  const [path] = word.split('#') as [string];
  if (!/^[\w./-]+$/.test(path) || path.startsWith('/')) return false;
  return (path.includes('/') && FOLDERS.includes(path.split('/')[0]!)) || /^[\w./-]+\.(ts|mjs|sh|md)$/.test(path);
}

function isThere(word: string): boolean {
  const [path, symbol] = word.split('#') as [string, string?];
  const found = [path, ...(path.includes('/') ? [] : FILES.filter((file) => basename(file) === path))].filter((file) => existsSync(join(ROOT, file)));
  if (symbol === undefined) return found.length > 0;
  return found.some((file) => statSync(join(ROOT, file)).isFile() && new RegExp(`\\b${symbol}\\b`).test(read(file)));
}

function longOptions(command: Command): string[] {
  return command.options.map(({ long }) => long!);
}

/** Commands that do something, each with the line that calls it: `vmferry vm start <vm>`. */
function leafCommands(command: Command, line: string): [string, Command][] {
  const below = command.commands.flatMap((child) => leafCommands(child, `${line} ${child.name()}`));
  return command.commands.length > 0 ? below : [[[line, ...command.registeredArguments.map((argument) => `<${argument.name()}>`)].join(' '), command]];
}

/** The first word of a command line that the program would not take; values of options and arguments are not judged. */
function commandProblem(words: string[]): string | undefined {
  const program = buildProgram();
  let command: Command = program;
  for (let index = 0; index < words.length; index++) {
    const word = words[index]!;
    if (word === '--help') continue;
    if (word.startsWith('--')) {
      const option = [...command.options, ...program.options].find(({ long }) => long === word);
      if (!option) return word;
      if (option.required) index++;
      const value = words[index];
      if (option.argChoices && value !== undefined && value !== word && !option.argChoices.includes(value)) return value;
    } else if (command.commands.length > 0) {
      const child = command.commands.find((one) => one.name() === word);
      if (!child) return word;
      command = child;
    }
  }
  return undefined;
}

/** The folders from which this one takes code, and those from which it takes only types. */
function importsOf(folder: string): { values: string[]; types: string[] } {
  const [values, types] = [new Set<string>(), new Set<string>()];
  for (const path of sources(folder)) {
    for (const [, typeOnly, what, from] of read(path).matchAll(/^(?:import|export) (type )?([^;]*?) from '(\.{1,2}\/[^']+)'/gms)) {
      const target = normalize(join(dirname(path), from!)).split('/')[0]!;
      const names = /^\{(.*)\}$/s.exec(what!.trim())?.[1]?.split(',').map((name) => name.trim()).filter(Boolean);
      const isType = typeOnly !== undefined || (names?.every((name) => name.startsWith('type ')) ?? false);
      if (target !== folder) (isType ? types : values).add(`${target}/`);
    }
  }
  return { values: [...values].sort(), types: [...types].filter((one) => !values.has(one)).sort() };
}
