import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buildProgram } from '../../client/cli';
import { linesFor, SCRIPTS, SHELLS, whatNext } from '../../client/completion';

const next = (...words: string[]) => whatNext(buildProgram(), words);
const bash = (...words: string[]) => {
  const found = next(...words);
  return linesFor('bash', found, found.candidates);
};

describe('what could come next', () => {
  test.each<[string[], string[]]>([
    [['mig'], ['migrate']],
    [['host', 'c'], ['cordon']],
    [['help', 'mig'], ['migrate']],
    [['migrate', 'web', '--on-d'], ['--on-divergence']],
    [['migrate', 'web', '--temporal-a'], ['--temporal-address']],
    [['migrate', '--on-divergence', ''], ['auto', 'ask', 'abort']],
    [['migrate', '--on-divergence', '=', 'a'], ['auto', 'ask', 'abort']],
    [['migrate', '--source-disks=w'], ['wipe']],
    [['steer', 'web', 'sw'], ['switchover-now']],
    [['completion', ''], ['bash', 'zsh', 'fish']],
    [['agent', '--config', ''], [':file']],
    [['vm', 'define', 'web.y'], [':file']],
    [['migrate', 'web', 'surplus', ''], []],
  ])('after %j is %j', (words, lines) => expect(bash(...words)).toEqual(lines));

  test.each<[string[], string | undefined]>([
    [['migrate', ''], 'vm'],
    [['migrate', 'web', '--to', 'h'], 'host'],
    [['--namespace', 'x', 'vm', 'start', '--host', 'a', ''], 'vm'],
    [['evacuate', 'host-a', ''], 'host'],
    [['evacuate', 'host-a', '--skip', ''], 'vm'],
    [['evacuate', 'host-a', '--to', ''], undefined],
    [['evacuation', 'watch', ''], 'evacuation'],
    [['evacuation', 'skip', 'host-a', ''], 'vm'],
    [['schedule', 'show', ''], 'schedule'],
    [['evacuate', '--name', ''], undefined],
  ])('after %j is a name of a kind: %s', (words, kind) => expect(next(...words).kind).toBe(kind));

  test('is asked at the Temporal that the line names', () => {
    expect(next('--temporal-address', 'a:1', 'migrate', '--namespace=n', '')).toMatchObject({ kind: 'vm', globals: { temporalAddress: 'a:1', namespace: 'n' } });
  });

  test('has what it does beside it, where a shell shows that', () => {
    const found = { ...next('migrate', '--t'), candidates: [{ value: '--to', about: 'a: b' }] };
    expect(SHELLS.map((shell) => linesFor(shell, found, found.candidates))).toEqual([['--to'], ['--to:a: b'], ['--to\ta: b']]);
    expect(linesFor('fish', next('migrate', '--source-disks=w'), [{ value: 'wipe' }])).toEqual(['--source-disks=wipe']);
  });
});

const folder = mkdtempSync(join(tmpdir(), 'vmferry-completion-'));
afterAll(() => rmSync(folder, { recursive: true }));

/** `vmferry` in a PATH of its own, and nobody where Temporal should be. */
const PATH = `${join(__dirname, '../../bin')}:${process.env['PATH']}`;
const run = (shell: string, script: string) => spawnSync(shell, ['-c', script], { encoding: 'utf8', env: { ...process.env, PATH, TEMPORAL_ADDRESS: '127.0.0.1:9' } });
const isThere = (shell: string) => spawnSync(shell, ['-c', ':']).status === 0;

test('bash completes commands, options, choices and files, and says nothing where Temporal does not answer', () => {
  const script = `source <(vmferry completion bash)
    try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _vmferry; echo "\${COMPREPLY[*]}"; }
    complete -p vmferry; try vmferry evacuat; try vmferry steer web wr; try vmferry migrate web --source-disks = k; try vmferry migrate ""`;
  expect(run('bash', script)).toMatchObject({ status: 0, stdout: 'complete -F _vmferry vmferry\nevacuate evacuation\nwrite-blocking\nkeep\n\n', stderr: '' });
});

test.each(['zsh', 'fish'] as const)('the script for %s is one that it reads', (shell) => {
  if (!isThere(shell)) return console.log(`${shell} is not installed: its script is not read`);
  const file = join(folder, shell);
  writeFileSync(file, SCRIPTS[shell]);
  expect(spawnSync(shell, ['-n', file], { encoding: 'utf8' })).toMatchObject({ status: 0, stderr: '' });
});
