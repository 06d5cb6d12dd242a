import type { Argument, Command, Option } from 'commander';

export const SHELLS = ['bash', 'zsh', 'fish'] as const;
export type Shell = (typeof SHELLS)[number];

/** Names that only the fleet knows, and files. */
const NAMED = ['vm', 'host', 'evacuation', 'schedule', 'file', 'folder'] as const;
type Named = (typeof NAMED)[number];

export interface Candidate {
  value: string;
  about?: string;
}

/** What could come next on a command line: known words, or names of a kind. */
export interface Next {
  candidates: Candidate[];
  kind?: Named;
  /** What was typed of it, and what stands before it in the same word (`--to=`). */
  typed: string;
  before: string;
  /** Values of the global options that were given. */
  globals: Record<string, string>;
}

/** What the word that is typed now, the last one, could become. Pure: read from the commands themselves. */
export function whatNext(program: Command, words: string[]): Next {
  let command = program;
  let position = 0;
  let takes: Option | undefined;
  const globals: Record<string, string> = {};
  const optionOf = (word: string) => [...command.options, ...program.options].find(({ long, short }) => long === word || short === word);
  for (const word of words.slice(0, -1)) {
    if (takes) {
      // bash takes `--to=host-b` for three words.
      if (word === '=') continue;
      if (program.options.includes(takes)) globals[takes.attributeName()] = word;
      takes = undefined;
    } else if (word.startsWith('-')) {
      const [name, value] = splitAtEquals(word);
      const option = optionOf(name);
      if (option?.required && value === undefined) takes = option;
      else if (option && value !== undefined && program.options.includes(option)) globals[option.attributeName()] = value;
    } else {
      const child = command.commands.find((one) => one.name() === word);
      if (child) [command, position] = [child, 0];
      else position++;
    }
  }

  const word = words.at(-1) ?? '';
  const [name, value] = splitAtEquals(word);
  const given = value === undefined || !word.startsWith('-') ? undefined : optionOf(name);
  const at = { typed: word, before: '', globals };
  if (given) return { ...valuesOf(given, command), ...at, typed: value!, before: `${name}=` };
  if (takes) return { ...valuesOf(takes, command), ...at, typed: word === '=' ? '' : word };
  if (word.startsWith('-')) return { candidates: [...command.options, ...(command === program ? [] : program.options)].map(({ long, description }) => ({ value: long!, about: description })), ...at };
  if (command.commands.length > 0) return { candidates: [...command.commands.map((one) => ({ value: one.name(), about: one.description() })), ...(command === program ? [{ value: 'help', about: 'what a command does' }] : [])], ...at };
  const known = command.registeredArguments;
  const argument = known[position] ?? (known.at(-1)?.variadic ? known.at(-1) : undefined);
  return { ...(argument ? valuesOf(argument, command) : { candidates: [] }), ...at };
}

function splitAtEquals(word: string): [string, string | undefined] {
  const at = word.indexOf('=');
  return at < 0 ? [word, undefined] : [word.slice(0, at), word.slice(at + 1)];
}

/** Its choices; or the kind of thing that its placeholder names, such as `<host>`. */
function valuesOf(of: Option | Argument, command: Command): Pick<Next, 'candidates' | 'kind'> {
  if (of.argChoices) return { candidates: of.argChoices.map((value) => ({ value })) };
  const placeholder = 'flags' in of ? /<([a-z-]+)>/.exec(of.flags)?.[1] : of.name();
  const kind = placeholder === 'name' && command.parent?.name() === 'schedule' ? 'schedule' : NAMED.find((one) => one === placeholder || `${one}s` === placeholder);
  return { candidates: [], ...(kind && { kind }) };
}

/** What the script of a shell reads: a line each, of those that begin with what was typed. Files are left to the shell. */
export function linesFor(shell: Shell, { typed, before, kind }: Next, candidates: Candidate[]): string[] {
  if (kind === 'file' || kind === 'folder') return [':file'];
  return candidates
    .filter(({ value }) => value.startsWith(typed))
    .map(({ value, about }) => {
      const text = (about ?? '').replace(/\s+/g, ' ').slice(0, 80);
      // bash splits a word at "=" and wants only what comes after it.
      if (shell === 'bash') return value;
      if (shell === 'fish') return `${before}${value}${text && `\t${text}`}`;
      return `${`${before}${value}`.replace(/[\\:]/g, '\\$&')}${text && `:${text}`}`;
    });
}

/** Between two words: no word has it, and no shell strips it. */
export const WORD_SEPARATOR = '\x1f';

/** To be read by a shell at its start. Each asks `vmferry completion SHELL --after WORDS`, and says nothing if that fails. */
export const SCRIPTS: Record<Shell, string> = {
  bash: `_vmferry() {
  local IFS=$'\\x1f'
  mapfile -t COMPREPLY < <("\${COMP_WORDS[0]}" completion bash --after "\${COMP_WORDS[*]:1:COMP_CWORD}" 2>/dev/null)
  if [[ \${COMPREPLY[0]-} == :file ]]; then
    COMPREPLY=()
    compopt -o default
  fi
}
complete -F _vmferry vmferry`,
  zsh: `#compdef vmferry
_vmferry() {
  local -a found
  found=("\${(@f)$("\${words[1]}" completion zsh --after "\${(pj:\\x1f:)words[2,CURRENT]}" 2>/dev/null)}")
  if [[ $found[1] == :file ]]; then
    _files
  elif [[ -n $found[1] ]]; then
    _describe vmferry found
  fi
}
if [[ $funcstack[1] == _vmferry ]]; then
  _vmferry "$@"
else
  compdef _vmferry vmferry
fi`,
  fish: `function __vmferry_complete
  set -l words (commandline -opc) (commandline -ct)
  set -l found ($words[1] completion fish --after (string join \\x1f -- $words[2..-1]) 2>/dev/null)
  if test "$found[1]" = :file
    __fish_complete_path (commandline -ct)
  else
    string join \\n -- $found
  end
end
complete -c vmferry -f -a '(__vmferry_complete)'`,
};
